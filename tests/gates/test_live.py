"""The canary's test: how often it is wrong, when it stops, what a pair is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.gates.live import Side, judge, paired

SIDES = st.sampled_from(["champion", "canary"])


def stream(
    champion: float, canary: float, n: int, seed: int, *, share: float = 0.1, drift: float = 0.0
) -> list[tuple[Side, float]]:
    """Rewards of 0 and 1 as they come in; with `drift` both sides get worse on the way."""
    random = np.random.default_rng(seed)
    found: list[tuple[Side, float]] = []
    for at in range(n):
        side: Side = "canary" if random.random() < share else "champion"
        rate = (canary if side == "canary" else champion) - drift * at / n
        found.append((side, float(random.random() < rate)))
    return found


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("drift", [0.0, 0.5])
def test_a_canary_that_is_no_better_is_seldom_promoted(share: float, drift: float) -> None:
    found = [
        judge(stream(0.6, 0.6, 2000, seed, share=share, drift=drift), most=150).action
        for seed in range(200)
    ]
    assert found.count("promote") <= 18  # 97.5 % limit of 0.05 of 200


def test_a_worse_canary_is_never_promoted_and_soon_ended() -> None:
    found = [judge(stream(0.8, 0.3, 3000, seed)) for seed in range(50)]
    assert {one.action for one in found} == {"roll back"}
    assert np.mean([one.pairs for one in found]) < 40
    assert all(
        one.canary_mean < one.champion_mean and one.reason.startswith("worse") for one in found
    )


def test_a_better_one_is_promoted() -> None:
    found = [judge(stream(0.3, 0.8, 3000, seed)) for seed in range(50)]
    assert {one.action for one in found} == {"promote"}


@given(st.lists(st.tuples(SIDES, st.floats(0, 1)), max_size=60))
def test_what_comes_later_changes_no_decision(rewards: list[tuple[Side, float]]) -> None:
    whole = judge(rewards, most=20)
    for end in range(len(rewards)):
        part = judge(rewards[:end], most=20)
        if part.action != "keep":
            assert part == whole
            break


@given(st.lists(st.tuples(SIDES, st.floats(0, 1)), max_size=60))
def test_a_pair_has_both_sides_and_no_reward_counts_twice(
    rewards: list[tuple[Side, float]],
) -> None:
    pairs = paired(rewards)
    sides = [side for side, _ in rewards]
    assert len(pairs) <= min(sides.count("champion"), sides.count("canary"))
    turned = [("champion" if s == "canary" else "canary", value) for s, value in rewards]
    assert paired(turned) == [(b, a) for a, b in pairs]  # type: ignore[arg-type]
    assert all(0 <= value <= 1 for pair in pairs for value in pair)


def test_the_rewards_since_the_last_pair_are_one_side_of_the_next() -> None:
    rewards: list[tuple[Side, float]] = [
        ("champion", 0.0), ("champion", 1.0), ("canary", 1.0), ("canary", 0.5), ("champion", 0.25),
        ("champion", 1.0),
    ]  # fmt: skip
    assert paired(rewards) == [(0.5, 1.0), (0.25, 0.5)]


def test_so_many_pairs_without_a_gain_end_it() -> None:
    same: list[tuple[Side, float]] = [("champion", 0.5), ("canary", 0.5)] * 30
    assert judge(same, most=31).action == "keep"
    ended = judge(same, most=30)
    assert (ended.action, ended.pairs) == ("roll back", 30)
    assert ended.reason.startswith("no proven gain") and ended.differences == (0.0,) * 30
    assert judge([]).action == "keep"


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_reward_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        judge([("champion", value)])
