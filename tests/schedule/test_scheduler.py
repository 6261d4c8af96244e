"""The scheduler in one process, on a clock set by hand: slots, seeds, failures, missed ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from schedule_fixtures import SetClock, StubCycles

from agentloop.cli.schedule import SessionCycles
from agentloop.errors import BudgetReached, ModelError, StoreError, UsageError
from agentloop.schedule import Calendar, Cron, Every, Outcome, Scheduler, Slot
from agentloop.schedule.slots import history, seed_of
from agentloop.store.archive import Archive
from agentloop.store.leases import LeaseHeld, LeaseLost
from agentloop.store.log import Log
from agentloop.store.query import Fence, Query

NOON = 1_790_000_000.0 // 3600 * 3600


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    opened = Log(tmp_path / "log.db")
    yield opened
    opened.close()


def scheduler(
    log: Log, cycles: StubCycles, clock: SetClock, calendar: Calendar | None = None, **more: Any
) -> Scheduler:
    calendar = calendar or Calendar(Every(3600.0))
    return Scheduler(
        log=log, workflow="w", calendar=calendar, cycles=cycles, clock=clock, pause=60.0, **more
    )


def states(log: Log) -> dict[str, str]:
    return {str(one["slot"]): str(one["state"]) for one in reversed(history(log, "w", 1000))}


def test_an_interval_begins_at_once_and_goes_on_after_a_restart(log: Log) -> None:
    clock, cycles = SetClock(NOON + 90), StubCycles(log)
    assert asyncio.run(scheduler(log, cycles, clock).run(2)) == 2
    clock.time += 1800
    assert asyncio.run(scheduler(log, cycles, clock).run(1)) == 1
    first = int(NOON) + 90
    assert clock.time == first + 7200
    assert cycles.ran == list(states(log)) and len(set(cycles.ran)) == 3
    assert [name[14:] for name in cycles.ran] == ["01:30Z"] * 3


def test_each_slot_has_a_seed_of_its_own(log: Log) -> None:
    seeds = {seed_of(f"2026-01-01T{hour:02}:00:00Z", 0) for hour in range(24)}
    assert len(seeds) == 24 and all(0 <= seed < 2**31 for seed in seeds)
    assert seed_of("a", 0) != seed_of("a", 1) and seed_of("a", 0) == seed_of("a", 0)
    clock, cycles = SetClock(NOON), StubCycles(log)
    asyncio.run(scheduler(log, cycles, clock).run(2))
    assert len(log.keys("cycle")) == 2


def test_a_slot_that_was_cut_off_goes_on_first_with_the_same_cycle(log: Log) -> None:
    clock, seen = SetClock(NOON), list[Slot]()

    def body(slot: Slot) -> Outcome:
        seen.append(slot)
        if len(seen) == 2:
            raise KeyboardInterrupt  # the process ends here
        return Outcome(state="kept")

    cycles = StubCycles(log, body=body)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(scheduler(log, cycles, clock).run())
    assert list(states(log).values()) == ["kept", "running"]
    clock.time += 5 * 3600
    assert asyncio.run(scheduler(log, cycles, clock).run(1)) == 1
    assert seen[1] == seen[2] and list(states(log).values()) == ["kept", "kept"]


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (UsageError("the workflow was changed"), 1), (BudgetReached("spent"), 1),
        (RuntimeError("a fault"), 1), (ModelError("the endpoint is down"), 61),
        (StoreError("no place"), 61), (OSError(28, "No space left on device"), 61),
    ],
)  # fmt: skip
def test_a_cycle_that_fails_says_why_and_the_next_one_starts(
    log: Log, error: Exception, tries: int
) -> None:
    """A fault that may pass is tried again until the next slot is due: 3,600 s of 60."""
    clock, failing = SetClock(NOON), True

    def body(slot: Slot) -> Outcome:
        if failing:
            raise error
        return Outcome(state="promoted", bundle="bundle-1")

    cycles = StubCycles(log, body=body)
    asyncio.run(scheduler(log, cycles, clock).run(1))
    assert len(cycles.ran) == tries and list(states(log).values()) == ["failed"]
    [told] = history(log, "w", 1)
    assert str(error) in str(told["reason"])
    failing = False
    asyncio.run(scheduler(log, cycles, clock).run(1))
    assert list(states(log).values()) == ["failed", "promoted"]


def test_an_outage_that_ends_costs_no_cycle(log: Log) -> None:
    clock, tries = SetClock(NOON), list[str]()

    def body(slot: Slot) -> Outcome:
        tries.append(slot.cycle)
        if len(tries) < 10:
            raise ModelError("the endpoint is down")
        return Outcome(state="kept")

    asyncio.run(scheduler(log, StubCycles(log, body=body), clock).run(1))
    assert len(set(tries)) == 1 and list(states(log).values()) == ["kept"]


def test_a_month_without_money_skips_slots_with_the_reason(log: Log) -> None:
    clock = SetClock(NOON, until=3 * 3600.0)
    cycles = StubCycles(log, refused="the month's budget of 1 usd is used")
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scheduler(log, cycles, clock).run())
    assert cycles.ran == [] and set(states(log).values()) == {"skipped"}
    assert len(states(log)) == 3  # at 0, 1 and 2 hours
    cycles.refused, clock.until = "", float("inf")
    asyncio.run(scheduler(log, cycles, clock).run(1))
    assert len(cycles.ran) == 1


@pytest.mark.parametrize(("missed", "expected"), [("skip", 2), ("once", 3), ("all", 6)])
def test_missed_slots(log: Log, missed: str, expected: int) -> None:
    """A cycle, 4.5 hours without a scheduler, then two more hours."""
    clock, cycles = SetClock(NOON), StubCycles(log)
    calendar = Calendar(Every(3600.0), missed)  # type: ignore[arg-type]
    asyncio.run(scheduler(log, cycles, clock, calendar).run(1))
    clock.time, clock.elapsed, clock.until = NOON + 4.5 * 3600, 0.0, 7200.0
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scheduler(log, cycles, clock, calendar).run())
    assert len(cycles.ran) == 1 + expected and len(set(cycles.ran)) == len(cycles.ran)
    assert cycles.ran == sorted(cycles.ran)
    assert ("missed" in states(log).values()) == (missed != "all")


def test_a_cycle_that_overruns_its_interval_costs_the_slots_between(log: Log) -> None:
    clock = SetClock(NOON)
    cycles = StubCycles(log, clock=clock, takes=2.5 * 3600)
    asyncio.run(scheduler(log, cycles, clock).run(3))
    assert [name[11:13] for name in cycles.ran] == [
        f"{(int(NOON) // 3600 + hours) % 24:02}" for hours in (0, 2, 5)
    ]


def test_without_stay_it_ends_when_nothing_is_due(log: Log) -> None:
    clock, cycles = SetClock(NOON), StubCycles(log)
    cron = Calendar(Cron("30 * * * *"))
    assert asyncio.run(scheduler(log, cycles, clock, cron).run(stay=False)) == 0
    clock.time += 1860
    assert asyncio.run(scheduler(log, cycles, clock, cron).run(stay=False)) == 1
    assert asyncio.run(scheduler(log, cycles, clock, cron).run(stay=False)) == 0
    log.lease("schedule/w", "another", 120.0)
    with pytest.raises(LeaseHeld):
        asyncio.run(scheduler(log, cycles, clock, cron).run(stay=False))


@pytest.mark.parametrize("calendar", [Calendar(Cron("30 * * * *")), Calendar(Every(3600.0))])
def test_a_clock_that_was_ahead_at_the_first_start_stops_nothing(
    log: Log, calendar: Calendar
) -> None:
    """Started from a crontab, each time anew: ten years ahead once, then set right."""
    clock, cycles = SetClock(NOON + 10 * 365 * 86400.0), StubCycles(log)
    asyncio.run(scheduler(log, cycles, clock, calendar).run(stay=False))
    cycles.ran.clear()
    clock.time = NOON + 300
    for _ in range(12 * 6):
        asyncio.run(scheduler(log, cycles, clock, calendar).run(stay=False))
        clock.time += 300
    assert len(cycles.ran) == len(set(cycles.ran)) == 6
    assert log.keys("schedule") == sorted(log.keys("schedule")) and len(log.keys("schedule")) == 2


@pytest.mark.parametrize("how", ["held", "lost"])
def test_a_slot_waits_for_a_cycle_that_runs_by_hand(log: Log, how: str) -> None:
    """However long that takes, and whatever else is due meanwhile; it is nobody's failure."""
    clock, told = SetClock(NOON), list[str]()
    by_hand = ("cycle/w", log.lease("cycle/w", "a person", 120.0))

    class Real(StubCycles):
        async def run(self, slot: Slot, fence: Fence) -> Outcome:
            if clock.time < NOON + 5 * 3600:
                if how == "held":
                    log.lease("cycle/w", "scheduler", 120.0)
                log.append([], fence=("cycle/w", by_hand[1] - 1))
            return await super().run(slot, fence)

    cycles = Real(log)
    asyncio.run(scheduler(log, cycles, clock, tell=told.append).run(1))
    assert list(states(log).values()) == ["kept"] and clock.time >= NOON + 5 * 3600
    assert not any("another scheduler" in text for text in told)
    assert ("held by a person" if how == "held" else "`cycle/w` was lost") in told[1]


def test_a_workflow_that_cannot_be_read_fails_its_slot(log: Log, tmp_path: Path) -> None:
    """It is no matter of the month's budget: nothing is skipped for it."""

    def open_session(seed: int) -> Any:
        raise UsageError("the workflow has no `model`")

    clock = SetClock(NOON)
    (tmp_path / "home").mkdir()
    with Archive(tmp_path / "home") as archive:
        cycles: Any = SessionCycles(open_session, archive, "w")
        asyncio.run(scheduler(log, cycles, clock).run(1))
    [told] = history(log, "w", 9)
    assert told["state"] == "failed" and told["reason"] == "the workflow has no `model`"


def test_a_second_scheduler_stands_by_and_takes_over(log: Log, tmp_path: Path) -> None:
    token, told = log.lease("schedule/w", "another", 0.3), list[str]()
    clock, cycles = SetClock(NOON), StubCycles(log)
    asyncio.run(scheduler(log, cycles, clock, tell=told.append, lease=0.3).run(1))
    assert "standing by" in told[0] and "held by another" in told[0]
    assert len(cycles.ran) == 1 and sum("standing by" in text for text in told) == 1
    with pytest.raises(LeaseLost):
        log.renew("schedule/w", token, 0.3)


def test_a_holder_that_lost_its_lease_writes_nothing_and_stands_by(log: Log) -> None:
    clock, told, seen = SetClock(NOON), list[str](), list[Slot]()

    def body(slot: Slot) -> Outcome:
        seen.append(slot)
        if len(seen) == 1:  # stopped past its lease here; another took it, and ended meanwhile
            held = log._reader.execute("SELECT token FROM lease").fetchone()[0]
            log.renew("schedule/w", held, 0.0)
            log.release("schedule/w", log.lease("schedule/w", "another", 0.3))
        return Outcome(state="kept")

    cycles = StubCycles(log, body=body)
    asyncio.run(scheduler(log, cycles, clock, tell=told.append, lease=0.3).run(1))
    assert any("another scheduler took over" in text for text in told)
    assert seen[0] == seen[1] and len(log.keys("promotion")) == 1
    assert [entry.kind for entry in log.read(Query(kinds=("slot_ended",)))] == ["slot_ended"]
