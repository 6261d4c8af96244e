"""What starts a cycle beside the clock: new trajectories, and a live reward that fell."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from live_episodes import add_live, live, reward
from schedule_fixtures import SetClock, StubCycles

from agentloop.errors import ModelError, UsageError
from agentloop.records import Limits, Sampling, Score, Setup, Task
from agentloop.schedule import Calendar, Outcome, Scheduler, Slot, Triggers
from agentloop.schedule.slots import history
from agentloop.schedule.triggers import fell, live_rewards
from agentloop.store.archive import Archive
from agentloop.store.query import Draft, Fence
from agentloop.trajectories.codec import to_json


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive(tmp_path) as opened:
        yield opened


def begin_cycle(archive: Archive, name: str = "cycle-1") -> int:
    return archive.log.append([Draft(kind="cycle", key=name, body={}, scope="w")])[0]


def test_trajectories_of_use_are_counted_and_others_are_not(archive: Archive) -> None:
    asked = Triggers(trajectories=10)
    add_live(archive.log, 9)
    add_live(archive.log, 50, purpose="collect")
    add_live(archive.log, 50, first=100, scope="another")
    assert asked.cause(archive.log, "w", 0) == ""
    add_live(archive.log, 1, first=9)
    assert asked.cause(archive.log, "w", 0) == "10 new trajectories"
    since = begin_cycle(archive)
    assert asked.cause(archive.log, "w", since) == ""


def test_a_reward_that_fell(archive: Archive) -> None:
    asked = Triggers(drift=0.01)
    reward(archive, [1.0] * 60)
    since = begin_cycle(archive)
    assert asked.cause(archive.log, "w", since) == ""
    reward(archive, [1.0] * 20, first=100)
    assert asked.cause(archive.log, "w", since) == ""
    reward(archive, [0.0] * 25, first=200)
    assert asked.cause(archive.log, "w", since) == "the live reward fell from 1.00 to 0.44"
    assert Triggers(drift=1e-12).cause(archive.log, "w", since) == ""
    assert asked.cause(archive.log, "another", since) == ""


def test_a_late_score_counts_when_it_comes_and_the_first_one_stays(archive: Archive) -> None:
    reward(archive, [1.0, 0.0, 1.0])
    since = begin_cycle(archive)
    assert live_rewards(archive.log, "w", since) == ([1.0, 0.0, 1.0], [])
    for number, value in (("0", 0.25), ("3", 0.75)):
        late = Score(value=value, success=False, source="person")
        if number == "3":
            add_live(archive.log, 1, first=3)
        for spec in ("feedback", "live"):
            asyncio.run(archive.add_scores([(f"ep-serve-{number}", late)], spec, scope="w"))
    assert live_rewards(archive.log, "w", since) == ([1.0, 0.0, 1.0], [0.75])


def test_grading_the_log_anew_starts_nothing(archive: Archive) -> None:
    """Another grader for what was logged, as `runs rescore` appends it, and rollouts of a bench."""
    reward(archive, [1.0] * 60)
    since = begin_cycle(archive)
    reward(archive, [1.0] * 60, first=100)
    reward(archive, [0.0] * 60, first=200, spec="reward")
    low = Score(value=0.0, success=False, source="another")
    names = [f"ep-serve-{first + at}" for first in (0, 100) for at in range(60)]
    asyncio.run(archive.add_scores([(name, low) for name in names], "another@rescore", scope="w"))
    assert Triggers(drift=0.05).cause(archive.log, "w", since) == ""
    assert live_rewards(archive.log, "w", since) == ([1.0] * 60, [1.0] * 60)


def marked(archive: Archive, n: int, **changes: object) -> None:
    """`n` bad episodes of use that are changed in some way."""
    made = [replace(live(500 + at), **changes) for at in range(n)]  # type: ignore[arg-type]
    archive.log.append([
        Draft(kind="episode", key=one.id, body=to_json(one), scope="w") for one in made
    ])  # fmt: skip
    bad = Score(value=0.0, success=False, source="test")
    asyncio.run(archive.add_scores([(one.id, bad) for one in made], "feedback", scope="w"))


@pytest.mark.parametrize("which", ["imported", "forked"])
def test_what_is_nobody_s_use_starts_nothing(archive: Archive, which: str) -> None:
    reward(archive, [1.0] * 60)
    since = begin_cycle(archive)
    if which == "imported":
        archive.log.append([Draft(kind="foreign", key="run-2", body=None)])
        marked(archive, 60, run="run-2")
    else:
        setup = Setup(graph="", shape="", tools={}, system="", sampling=Sampling(), limits=Limits())
        marked(archive, 60, run="run-2", setup=replace(setup, parent="ep-serve-1", step=2))
    asked = Triggers(trajectories=10, drift=0.05)
    assert asked.cause(archive.log, "w", since) == ""
    add_live(archive.log, 10, first=900)
    assert asked.cause(archive.log, "w", since) == "10 new trajectories"


def test_a_conversation_is_one_opinion(archive: Archive) -> None:
    """Its turns come from one person; counted apart they would be sure of what one says."""
    reward(archive, [1.0] * 60)
    since = begin_cycle(archive)
    for turn in range(40):
        name, task = f"ep-turn-{turn}", Task(id=f"serve/session:eve/{turn}", prompt="?")
        one = replace(live(0), id=name, task=task)
        archive.log.append([Draft(kind="episode", key=name, body=to_json(one), scope="w")])
        low = Score(value=turn / 100, success=False, source="person")
        asyncio.run(archive.add_scores([(name, low)], "feedback", scope="w"))
    assert live_rewards(archive.log, "w", since)[1] == [0.0]
    assert Triggers(drift=0.05).cause(archive.log, "w", since) == ""


def test_false_alarms_are_as_rare_as_said_however_often_one_looks() -> None:
    """One mean before and after; asked after each of 200 rewards, for two kinds of rewards."""
    rng, alpha, runs = np.random.default_rng(0), 0.1, 400
    alarms = 0
    for number in range(runs):
        drawn = rng.random(400) if number % 2 else (rng.random(400) < 0.7).astype(float)
        before, recent = list(drawn[:200]), list(drawn[200:])
        # `fell` looks at the whole path, so that once is as often as one likes
        alarms += fell(before, recent, alpha)
    assert alarms <= alpha * runs
    assert alarms > 0, "a test that never speaks"


def test_a_fall_of_thirty_points_is_found_within_a_hundred() -> None:
    rng = np.random.default_rng(1)
    found = sum(
        fell(list((rng.random(100) < 0.8) * 1.0), list((rng.random(100) < 0.5) * 1.0), 0.05)
        for _ in range(100)
    )
    assert found >= 90
    assert not fell([], [], 0.5) and not fell([1.0], [], 0.5) and not fell([], [0.0], 0.5)


def test_one_cycle_per_cause_and_again_the_next_day_when_refused(archive: Archive) -> None:
    add_live(archive.log, 10)
    clock = SetClock(1_790_000_000.0, until=3600.0)
    cycles = StubCycles(archive.log, refused="no money")
    scheduler = Scheduler(
        log=archive.log, workflow="w", calendar=Calendar(None), cycles=cycles, clock=clock,
        triggers=Triggers(trajectories=10),
    )  # fmt: skip

    def hours(n: float) -> None:
        clock.elapsed, clock.until = 0.0, n * 3600
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(scheduler.run())

    hours(1)
    assert len(archive.log.keys("slot_ended")) == 1 and cycles.ran == []
    clock.jump(86400.0)
    hours(1)
    assert len(archive.log.keys("slot_ended")) == 2
    cycles.refused = ""
    clock.jump(86400.0)
    hours(1)
    assert len(cycles.ran) == 1


@pytest.mark.parametrize("error", [UsageError("no such file"), ModelError("it is down")])
def test_a_slot_that_fails_before_its_cycle_began_switches_no_trigger_off(
    archive: Archive, error: Exception
) -> None:
    """The cause is still there: it is tried again, once a day."""
    add_live(archive.log, 10)
    clock, tried = SetClock(1_790_000_000.0, until=3.5 * 86400), list[float]()

    class Failing(StubCycles):
        async def run(self, slot: Slot, fence: Fence) -> Outcome:
            tried.append(clock.time)
            if clock.time < 1_790_000_000.0 + 3 * 86400:
                raise error
            return await super().run(slot, fence)

    cycles = Failing(archive.log)
    scheduler = Scheduler(
        log=archive.log, workflow="w", calendar=Calendar(None), cycles=cycles, clock=clock,
        triggers=Triggers(trajectories=10),
    )  # fmt: skip
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scheduler.run())
    assert len(cycles.ran) == 1
    states = [one["state"] for one in reversed(history(archive.log, "w", 10))]
    if isinstance(error, UsageError):
        assert states == ["failed"] * 4 + ["kept"] and len(tried) == 5
    else:  # what may pass is tried every minute, for a day
        assert states == ["failed"] * 2 + ["kept"] and len(tried) > 4000
