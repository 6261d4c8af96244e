"""Evidence by betting: what may be said at any time, and how soon."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.gates.betting import evidence, interval, wealth


def differences(rng: np.random.Generator, effect: float, n: int) -> list[float]:
    """Pairs of which half are decided one way or the other."""
    return list(rng.choice([1.0, 0.0, -1.0], n, p=[0.25 + effect / 2, 0.5, 0.25 - effect / 2]))


def test_a_null_is_rejected_at_any_time_no_more_often_than_stated() -> None:
    rng = np.random.default_rng(7)
    rejected = sum(max(wealth(differences(rng, 0.0, 400))) >= 20 for _ in range(1_000))
    assert rejected <= 64  # 97.5 % limit of 1,000 at 0.05


def test_an_effect_is_found_soon() -> None:
    rng = np.random.default_rng(8)
    needed = []
    for _ in range(200):
        grown = wealth(differences(rng, 0.3, 400))
        needed.append(next(at for at, worth in enumerate(grown, 1) if worth >= 20))
    assert np.mean(needed) < 60


def test_betting_against_an_effect_of_a_tenth_finds_that_there_is_none() -> None:
    rng = np.random.default_rng(9)
    below = [-one for one in differences(rng, -0.1, 400)]
    assert max(wealth(below, null=-0.1)) >= 20


@given(st.lists(st.floats(-1, 1), max_size=50), st.floats(-0.9, 0.9))
def test_worth_is_never_negative_and_says_one_number_per_difference(
    values: list[float], null: float
) -> None:
    grown = wealth(values, null=null)
    assert len(grown) == len(values)
    assert all(one >= 0 for one in grown)


@given(st.floats(-0.9, 0.9))
def test_what_is_exactly_as_expected_changes_nothing(null: float) -> None:
    assert wealth([null] * 5, null=null) == pytest.approx([1.0] * 5)


def test_each_bet_is_fair_at_the_null() -> None:
    for null in (-0.5, 0.0, 0.4):
        up, down = wealth([1.0], null=null)[0], wealth([-1.0], null=null)[0]
        assert up * (1 + null) / 2 + down * (1 - null) / 2 == pytest.approx(1.0)


@pytest.mark.parametrize("value", [1.1, -2.0, float("nan")])
def test_other_differences_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="between -1 and 1"):
        wealth([value])


def test_evidence_is_the_most_a_stake_was_worth() -> None:
    won_and_lost = [1.0] * 8 + [-1.0] * 4
    grown = wealth(won_and_lost)
    assert evidence(won_and_lost) == max(grown) == grown[7] > grown[-1]
    assert evidence([]) == evidence([-1.0]) == 1.0
    assert evidence([1.0] * 10_000) < float("inf")  # it goes into JSON


@pytest.mark.parametrize("effect", [0.0, 0.3])
def test_the_interval_covers_however_it_was_stopped(effect: float) -> None:
    """Stopped where it looks best: an ordinary 95 % interval would miss far more often."""
    rng = np.random.default_rng(3)
    missed, widths = 0, []
    for _ in range(200):
        drawn = differences(rng, effect, 200)
        sums = np.cumsum(drawn)[19:] / np.arange(20, 201)
        low, high = interval(drawn[: 20 + int(np.argmax(sums))])
        missed += not low <= effect <= high
        widths.append(high - low)
    assert missed <= 16 and np.mean(widths) < 1.0  # 97.5 % limit of 200 at 0.05


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40))
def test_the_interval_holds_the_observed_mean_and_mirrors(values: list[float]) -> None:
    low, high = interval(values)
    assert -1 <= low <= np.mean(values) + 1e-9 and np.mean(values) - 1e-9 <= high <= 1
    assert interval([-one for one in values]) == (pytest.approx(-high), pytest.approx(-low))
    assert interval([]) == (-1.0, 1.0)
