"""The maths of credit: what holds for every group of rewards."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.datasets.advantages import (
    Baseline,
    group_centred,
    leave_one_out,
    multi_critic,
    normalised,
    percentile,
    progress,
    recalibrated,
    step_and_episode,
    two_attempts,
)
from agentloop.errors import UsageError

reward = st.floats(-100, 100, allow_nan=False).map(lambda value: round(value, 3))
rewards = st.lists(reward, min_size=1, max_size=16)
BASELINES: tuple[Baseline, ...] = ("mean", "mean_std", "leave_one_out")


@given(rewards)
def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others(values: list[float]) -> None:
    found = leave_one_out(values)
    size, mean = len(values), sum(values) / len(values)
    assert math.fsum(found) == pytest.approx(0, abs=1e-9)
    for at, value in enumerate(values):
        others = values[:at] + values[at + 1 :]
        want = value - sum(others) / len(others) if others else 0.0
        assert found[at] == pytest.approx(want, abs=1e-7)
        if size > 1:
            assert found[at] == pytest.approx(size / (size - 1) * (value - mean), abs=1e-7)


@given(rewards)
def test_scaled_advantages_have_mean_zero_and_deviation_one(values: list[float]) -> None:
    found = group_centred(values, scale=True)
    assert math.fsum(found) == pytest.approx(0, abs=1e-6)
    if len(set(values)) > 1:
        assert math.fsum(one * one for one in found) / len(found) == pytest.approx(1)


@given(st.floats(-1e6, 1e6), st.integers(1, 20), st.sampled_from(BASELINES))
def test_a_group_of_one_reward_gets_exact_zeros(
    value: float, size: int, baseline: Baseline
) -> None:
    assert normalised([value] * size, baseline) == [0.0] * size


@pytest.mark.parametrize("baseline", BASELINES)
def test_rounding_is_no_difference(baseline: Baseline) -> None:
    assert normalised([0.1 + 0.2, 0.3, 0.3], baseline) == [0.0, 0.0, 0.0]


@given(rewards, st.sampled_from(BASELINES), st.randoms(use_true_random=False))
def test_advantages_follow_their_rewards_in_any_order(
    values: list[float], baseline: Baseline, chance: random.Random
) -> None:
    order = list(range(len(values)))
    chance.shuffle(order)
    found = normalised(values, baseline)
    assert normalised([values[at] for at in order], baseline) == [found[at] for at in order]


@given(rewards, st.floats(0.01, 100), st.floats(-10, 10), st.sampled_from(BASELINES))
def test_a_shift_changes_nothing_and_a_unit_changes_as_much_as_it_may(
    values: list[float], unit: float, shift: float, baseline: Baseline
) -> None:
    found = normalised(values, baseline)
    moved = normalised([value * unit + shift for value in values], baseline)
    grown = 1.0 if baseline == "mean_std" else unit
    assert moved == pytest.approx([one * grown for one in found], abs=1e-4, rel=1e-6)


def test_the_published_coefficients_of_right_and_wrong() -> None:
    """With a share p right: 1 - p and -p centred, sqrt((1 - p) / p) and its mirror scaled."""
    for right in (1, 4, 7):
        p, values = right / 8, [1.0] * right + [0.0] * (8 - right)
        assert group_centred(values) == pytest.approx([1 - p] * right + [-p] * (8 - right))
        good, bad = math.sqrt((1 - p) / p), -math.sqrt(p / (1 - p))
        want = [good] * right + [bad] * (8 - right)
        assert group_centred(values, scale=True) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("baseline", BASELINES)
def test_a_reward_that_is_no_number_is_refused(bad: float, baseline: Baseline) -> None:
    with pytest.raises(UsageError, match="finite"):
        normalised([0.0, bad], baseline)


def test_percentiles_are_linear_between_neighbours() -> None:
    assert [percentile([4, 1, 2, 3], q) for q in (0, 50, 75, 100)] == [1, 2.5, 3.25, 4]
    assert percentile([7.0], 50) == 7.0
    for values, q in (([], 50.0), ([1.0], 101.0)):
        with pytest.raises(UsageError, match="percentile"):
            percentile(values, q)


def test_what_was_good_is_dropped_when_others_have_caught_up() -> None:
    assert recalibrated([0.6], [0.2, 0.5, 0.4])[0] > 0
    assert recalibrated([0.6], [0.9, 0.5, 0.8])[0] < 0


@given(st.lists(st.tuples(reward, st.lists(reward, max_size=6)), min_size=1, max_size=8))
def test_steps_without_a_reward_leave_the_episodes_advantage(
    group: list[tuple[float, list[float]]],
) -> None:
    totals, steps = [one for one, _ in group], [each for _, each in group]
    whole = normalised(totals, "leave_one_out")
    flat = [[0.0] * len(each) for each in steps]
    found = step_and_episode(totals, flat, alpha=3.0, baseline="leave_one_out")
    assert found == [[one] * len(each) for one, each in zip(whole, steps, strict=True)]
    every = [one for each in steps for one in each]
    paid = step_and_episode([0.0] * len(group), steps, alpha=1.0, baseline="leave_one_out")
    mine = [one for each in paid for one in each]
    assert mine == pytest.approx(normalised(every, "leave_one_out"))


def test_the_baseline_of_a_step_is_of_all_steps_of_the_group() -> None:
    """A baseline of the first steps alone, or of each episode's own, would give other numbers."""
    found = step_and_episode([1.0, 0.0], [[4.0, 0.0], [0.0, 0.0]], alpha=0.5, baseline="mean")
    assert found == [[0.5 + 0.5 * 3.0, 0.5 - 0.5], [-0.5 - 0.5, -0.5 - 0.5]]
    with pytest.raises(UsageError, match="2 episodes"):
        step_and_episode([1.0, 0.0], [[1.0]])


@given(st.integers(2, 8).flatmap(lambda n: st.lists(
    st.lists(reward, min_size=n, max_size=n), min_size=2, max_size=2)),
    st.sampled_from([0.01, 100.0]))  # fmt: skip
def test_a_critic_counts_the_same_in_any_unit(pair: list[list[float]], unit: float) -> None:
    one, two = pair
    weights = {"one": 1.0, "two": 0.5}
    found = multi_critic({"one": one, "two": two}, weights)
    scaled = multi_critic({"one": [value * unit for value in one], "two": two}, weights)
    assert scaled == pytest.approx(found, abs=1e-6)


def test_a_constant_critic_adds_nothing_and_a_rare_one_is_held() -> None:
    streams = {"right": [1.0, 0.0, 1.0, 0.0], "flat": [7.0] * 4}
    assert multi_critic(streams, {"right": 1.0, "flat": 9.0}) == [1.0, -1.0, 1.0, -1.0]
    rare = [0.0] * 99 + [-100.0]
    assert min(multi_critic({"safe": rare}, {"safe": 2.0})) == -10.0
    assert min(multi_critic({"safe": rare}, {"safe": 1.0}, clip=math.inf)) < -9.9
    swapped = multi_critic({"a": [1.0, 0.0], "b": [0.0, 3.0]}, {"a": 2.0, "b": 1.0})
    assert swapped == multi_critic({"a": [0.0, 3.0], "b": [1.0, 0.0]}, {"a": 1.0, "b": 2.0})


def test_critics_must_be_there_and_of_one_length() -> None:
    with pytest.raises(UsageError, match="`form`"):
        multi_critic({"right": [1.0]}, {"form": 1.0})
    with pytest.raises(UsageError, match="different numbers"):
        multi_critic({"a": [1.0], "b": [1.0, 2.0]}, {"a": 1.0, "b": 1.0})


def test_the_bonus_of_a_second_attempt() -> None:
    table = {(0, 0): 0, (0, 1): 11, (1, 1): 1, (1, 0): -10}
    assert {pair: progress(*pair, bonus=10) for pair in table} == table


@given(st.lists(st.tuples(reward, reward), min_size=1, max_size=8), st.floats(0, 20))
def test_the_bonus_is_the_second_attempts_alone(
    pairs: list[tuple[float, float]], bonus: float
) -> None:
    plain, paid = two_attempts(pairs, bonus=0.0), two_attempts(pairs, bonus=bonus)
    assert [one for one, _ in paid] == [one for one, _ in plain]
    want = group_centred([two + bonus * (two - one) for one, two in pairs])
    assert [two for _, two in paid] == pytest.approx(want)
    held = two_attempts(pairs, bonus=bonus, first=0.0)
    assert {one for one, _ in held} == {0.0}
    assert [two for _, two in held] == [two for _, two in paid]
