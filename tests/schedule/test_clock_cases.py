"""The machine's clock is set, or leaps by itself: no slot is run twice, none is lost but by the
rule for missed ones, and no lease is shortened or prolonged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from live_episodes import add_live
from schedule_fixtures import SetClock, StubCycles, nothing

from agentloop.schedule import Calendar, Cron, Every, Outcome, Scheduler, Slot, Triggers
from agentloop.schedule.calendar import iso
from agentloop.schedule.slots import history
from agentloop.store import leases
from agentloop.store.leases import LeaseHeld, LeaseLost
from agentloop.store.log import Log
from agentloop.store.query import Query

HOUR, DAY, YEARS = 3600.0, 86400.0, 10 * 365.25 * 86400.0


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    opened = Log(tmp_path / "log.db")
    yield opened
    opened.close()


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


JUMPS: dict[str, tuple[str, list[float]]] = {
    "an hour back": ("2026-06-10T06:00", [-HOUR]),
    "an hour on": ("2026-06-10T06:00", [HOUR]),
    "ten years on": ("2026-06-10T06:00", [YEARS]),
    "ten years on and back": ("2026-06-10T06:00", [YEARS, -YEARS]),
    "summer time begins": ("2026-03-28T18:00", []),
    "summer time ends": ("2026-10-24T18:00", []),
    "a leap day": ("2028-02-28T18:00", []),
    "the monotonic clock a day on": ("2026-06-10T06:00", []),
}
"""When it begins, and by how much the clock is set, after every six and a half hours."""
STRETCH = 6.5 * HOUR


def run(log: Log, jump: str, calendar: Calendar, triggers: Triggers = Triggers()) -> StubCycles:
    """30 hours of a scheduler, asleep most of the time, with the jumps between its naps."""
    begin, jumps = JUMPS[jump]
    clock = SetClock(at(begin) + 60.0, until=30 * HOUR)
    cycles = StubCycles(log)
    clock.jumps = [((n + 1) * STRETCH, seconds) for n, seconds in enumerate(jumps)]
    scheduler = Scheduler(
        log=log, workflow="w", calendar=calendar, cycles=cycles, clock=clock, triggers=triggers,
    )  # fmt: skip
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scheduler.run())
    return cycles


def expected(jump: str, calendar: Calendar) -> set[str]:
    """Every planned moment that the clock showed in the 30 hours, and after each jump the latest of
    those between the last of them and then, which it did not show."""
    begin, jumps = JUMPS[jump]
    now, shown, left = at(begin) + 60.0, set[float](), 30 * HOUR - 1.0
    for seconds in [*jumps, 0.0]:
        stretch = STRETCH if seconds else left
        shown |= set(calendar.due(now - 0.001, now + stretch))
        left -= stretch
        now += stretch + seconds
        mark = max(moment for moment in shown if moment <= now)
        shown |= set(calendar.due(mark, now)[-1:])
    return {iso(moment) for moment in shown}


@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize(
    "calendar",
    [Calendar(Cron("0 */2 * * *", "Europe/Berlin")), Calendar(Every(2 * HOUR))],
    ids=["cron", "interval"],
)
def test_slots(log: Log, monkeypatch: pytest.MonkeyPatch, jump: str, calendar: Calendar) -> None:
    if jump.startswith("the monotonic"):
        monotonic(monkeypatch, DAY)
    cycles = run(log, jump, calendar)
    assert len(set(cycles.ran)) == len(cycles.ran), "a slot was run twice"
    grid = calendar.anchored(at(JUMPS[jump][0]) + 60.0)
    assert set(cycles.ran) == expected(jump, grid), "a slot was lost, or made up"
    assert len(cycles.ran) >= 12
    ended = [entry.key for entry in log.read(Query(kinds=("slot_ended",)))]
    assert [key.removeprefix("w/") for key in ended if _ran(log, key)] == cycles.ran


@pytest.mark.parametrize("jump", JUMPS)
def test_triggers_ask_no_clock(log: Log, monkeypatch: pytest.MonkeyPatch, jump: str) -> None:
    """Ten trajectories start a cycle, in the order of the log, whatever the time is said to be."""
    if jump.startswith("the monotonic"):
        monotonic(monkeypatch, DAY)
    added = 0

    def body(slot: Slot) -> Outcome:
        nonlocal added
        if added < 50:
            add_live(log, 10, first=added)
            added += 10
        if jumps:
            clock.jump(jumps.pop(0))
        return nothing(slot)

    add_live(log, 10, first=1000)
    begin, jumps = JUMPS[jump][0], list(JUMPS[jump][1])
    clock = SetClock(at(begin), until=2 * HOUR)
    cycles = StubCycles(log, body=body)
    scheduler = Scheduler(
        log=log, workflow="w", calendar=Calendar(None), cycles=cycles, clock=clock,
        triggers=Triggers(trajectories=10),
    )  # fmt: skip
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scheduler.run())
    assert len(cycles.ran) == len(set(cycles.ran)) == 6
    after = [int(name.rpartition("-")[2]) for name in cycles.ran]
    assert after == sorted(after) and after[0] == 0


def _ran(log: Log, key: str) -> bool:
    return log.get("slot_begun", key) is not None


def monotonic(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """From the next look on, the monotonic clock of leases is ahead."""
    real, looks = leases.time.monotonic, [0]

    def ahead() -> float:
        looks[0] += 1
        return real() + (seconds if looks[0] > 5 else 0.0)

    monkeypatch.setattr(leases.time, "monotonic", ahead)


# --- leases --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-HOUR, HOUR, YEARS, -YEARS])
def test_a_lease_does_not_hear_of_a_clock_that_is_set(
    log: Log, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    real = leases.time.time
    token = log.lease("schedule/w", "one", 0.15)
    monkeypatch.setattr(leases.time, "time", lambda: real() + seconds)
    with pytest.raises(LeaseHeld):
        log.lease("schedule/w", "two", 0.15)
    log.renew("schedule/w", token, 0.15)
    wait_until(lambda: log.lease("schedule/w", "two", 0.15))
    with pytest.raises(LeaseLost):
        log.renew("schedule/w", token, 0.15)


def test_a_lease_of_before_the_machine_was_started_again_is_over(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monotonic clock begins anew; what it promised before is further away than any lease."""
    real = leases.time.monotonic
    monkeypatch.setattr(leases.time, "monotonic", lambda: real() + DAY)
    first = log.lease("schedule/w", "one", 120.0)
    monkeypatch.setattr(leases.time, "monotonic", real)
    assert log.lease("schedule/w", "two", 120.0) == first + 1


def test_a_monotonic_clock_a_day_on_ends_leases_and_the_old_holder_is_refused(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = leases.time.monotonic
    first = log.lease("schedule/w", "one", 120.0)
    monkeypatch.setattr(leases.time, "monotonic", lambda: real() + DAY)
    log.renew("schedule/w", first, 120.0)  # nobody took it: it is still good
    with pytest.raises(LeaseHeld):
        log.lease("schedule/w", "two", 120.0)
    monkeypatch.setattr(leases.time, "monotonic", lambda: real() + 2 * DAY)
    log.lease("schedule/w", "two", 120.0)
    with pytest.raises(LeaseLost):
        log.renew("schedule/w", first, 120.0)


def wait_until(take: Callable[[], int]) -> int:
    import time

    until = time.monotonic() + 5
    while True:
        try:
            return take()
        except LeaseHeld:
            assert time.monotonic() < until
            time.sleep(0.02)


def test_what_a_jump_passes_over_is_noted(log: Log) -> None:
    run(log, "ten years on", Calendar(Every(2 * HOUR)))
    missed = [one for one in history(log, "w", 100) if one["state"] == "missed"]
    assert len(missed) == 1 and missed[0]["at_least"] == 100
