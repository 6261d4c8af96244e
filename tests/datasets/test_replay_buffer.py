"""A buffer gives what is still good, as it was sampled, and the same for a seed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.datasets.replay import Replay, ReplayBuffer
from agentloop.errors import UsageError
from agentloop.records import Row


def row(name: str, reward: float = 1.0, worth: float = 0.5, policy: str = "p0") -> Row:
    return Row(
        episode=name,
        prompt=(),
        segments=((1, 2), tuple(name.encode())),
        sampled=(False, True),
        logprobs=((), tuple(-one / 100 for one in name.encode())),
        advantages=(0.0, worth),
        reward=reward,
        policy=policy,
    )


def names(rows: list[Row]) -> list[str]:
    return [one.episode for one in rows]


def test_only_what_was_better_than_its_group_is_stored_and_once() -> None:
    buffer = ReplayBuffer()
    found = [row("good"), row("even", worth=0.0), row("bad", worth=-0.5)]
    assert buffer.add(found, step=0) == 1
    assert buffer.add(found, step=1) == 0
    assert len(buffer) == 1


def test_old_rows_leave_by_age_capacity_and_version() -> None:
    buffer = ReplayBuffer(Replay(max_age=2, capacity=3))
    buffer.add([row("a"), row("b")], step=0)
    buffer.add([row("c"), row("d", policy="p1")], step=1)
    assert len(buffer) == 3  # `a`, the oldest, is gone
    assert buffer.evict(step=2) == 0
    assert buffer.evict(step=3) == 1
    assert buffer.evict(step=3, versions={"p1"}) == 1
    assert names(buffer.draw(9, step=3, seed=0)) == ["d"]


def test_a_draw_pays_by_what_groups_earn_now() -> None:
    buffer = ReplayBuffer(Replay(empty=False))
    buffer.add([row("high", reward=0.9), row("low", reward=0.6)], step=0)
    assert [one.advantages for one in buffer.draw(9, step=0, seed=0)] == [(0.0, 0.5)] * 2
    buffer.note([0.1, 0.5, 0.9])
    drawn = {one.episode: one for one in buffer.draw(9, step=0, seed=0)}
    assert drawn["high"].advantages == (0.0, pytest.approx(0.4))
    assert drawn["low"].advantages == (0.0, pytest.approx(0.1))
    assert drawn["low"].logprobs == row("low").logprobs
    buffer.note([0.8] * 9)
    assert names(buffer.draw(9, step=0, seed=0)) == ["high"]
    stored = ReplayBuffer(Replay(q=None))
    stored.add([row("low", reward=0.6)], step=0)
    stored.note([0.8] * 9)
    assert names(stored.draw(9, step=0, seed=0)) == ["low"]


def test_only_the_newest_means_count() -> None:
    buffer = ReplayBuffer(Replay(history=2))
    buffer.note([1.0, 1.0, 0.0, 0.2])
    assert buffer.baseline() == pytest.approx(0.1)


def test_a_draw_waits_for_enough_and_empties_the_buffer() -> None:
    buffer = ReplayBuffer(Replay(at_least=3))
    buffer.add([row("a"), row("b")], step=0)
    assert buffer.draw(9, step=0, seed=0) == []
    assert len(buffer) == 2
    buffer.add([row("c")], step=0)
    assert len(buffer.draw(2, step=0, seed=0)) == 2
    assert (len(buffer), buffer.draw(2, step=0, seed=0)) == (0, [])


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_a_seed_decides_and_a_restored_buffer_draws_the_same(seed: int, n: int) -> None:
    buffer = ReplayBuffer()
    buffer.note([0.3, 0.1])
    for step in range(3):
        buffer.add([row(f"e{step}-{at}", reward=at / 4) for at in range(4)], step=step)
    state = json.loads(json.dumps(buffer.state()))
    again = ReplayBuffer()
    again.restore(state)
    assert again.state() == buffer.state()
    drawn = buffer.draw(n, step=3, seed=seed)
    assert again.draw(n, step=3, seed=seed) == drawn
    assert len(drawn) == min(n, 9) == len(set(names(drawn)))


def test_the_seed_matters() -> None:
    def drawn(seed: int) -> list[str]:
        buffer = ReplayBuffer()
        buffer.add([row(f"e{at}") for at in range(30)], step=0)
        return names(buffer.draw(5, step=0, seed=seed))

    assert len({tuple(drawn(seed)) for seed in range(10)}) > 5


def test_a_row_without_what_a_ratio_needs_is_refused() -> None:
    bare = Row(episode="x", prompt=(), segments=((1,),), sampled=(True,), reward=1.0)
    with pytest.raises(UsageError, match="`x` lacks"):
        ReplayBuffer().add([bare], step=0)
