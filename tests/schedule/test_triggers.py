"""What starts a cycle beside the clock: new trajectories, and a live reward that fell."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from live_episodes import add_live, reward
from schedule_fixtures import SetClock, StubCycles

from agentloop.records import Score
from agentloop.schedule import Calendar, Scheduler, Triggers
from agentloop.schedule.triggers import fell, live_rewards
from agentloop.store.archive import Archive
from agentloop.store.query import Draft


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


def test_a_late_score_counts_when_it_comes(archive: Archive) -> None:
    reward(archive, [1.0, 0.0, 1.0])
    since = begin_cycle(archive)
    assert live_rewards(archive.log, "w", since) == ([1.0, 0.0, 1.0], [])
    late = Score(value=0.25, success=False, source="person")
    asyncio.run(archive.add_scores([("ep-serve-0", late)], "feedback", scope="w"))
    assert live_rewards(archive.log, "w", since) == ([0.0, 1.0], [0.25])


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


def test_one_cycle_per_cause_and_again_next_month_when_refused(archive: Archive) -> None:
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
    clock.jump(31 * 86400.0)
    hours(1)
    assert len(archive.log.keys("slot_ended")) == 2
    cycles.refused = ""
    clock.jump(31 * 86400.0)
    hours(1)
    assert len(cycles.ran) == 1
