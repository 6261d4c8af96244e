"""One answer from several samples."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentloop.errors import UsageError
from agentloop.rewards.vote import best_of_n, majority, sigmoid, weighted_majority

answers = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=12)


def test_most_votes_win_and_the_first_of_equals() -> None:
    assert majority(["b", "a", "a"]) == "a"
    assert majority(["b", "a", "a", "b"]) == "b"
    assert majority([None, None, None, "a"]) == "a"
    assert majority([None]) is None and majority([]) is None


def test_weight_outvotes_number() -> None:
    assert weighted_majority(["a", "a", "b"], [0.2, 0.2, 0.5]) == "b"
    assert weighted_majority(["a", "a", "b"], [0.3, 0.3, 0.5]) == "a"


@settings(deadline=None)
@given(answers)
def test_equal_weights_are_a_plain_vote(given_answers: list[str | None]) -> None:
    weights = [0.7] * len(given_answers)
    assert weighted_majority(given_answers, weights) == majority(given_answers)


@settings(deadline=None)
@given(answers, st.data())
def test_the_winner_has_the_greatest_sum(
    given_answers: list[str | None], data: st.DataObject
) -> None:
    weights = [float(data.draw(st.integers(0, 5))) for _ in given_answers]
    won = weighted_majority(given_answers, weights)
    pairs = list(zip(given_answers, weights, strict=True))
    sums = {name: sum(w for other, w in pairs if other == name) for name in set(given_answers)}
    sums.pop(None, None)
    assert won is None if not sums else sums[won] == max(sums.values())


def test_the_best_is_the_highest_and_the_first_of_equals() -> None:
    assert best_of_n([0.1, -3.0, 0.4, 0.4]) == 2
    assert best_of_n([-math.inf, -5.0]) == 1


@pytest.mark.parametrize("weights", [[1.0], [-0.1, 1.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_weights_that_cannot_be_added_are_an_error(weights: list[float]) -> None:
    with pytest.raises(UsageError):
        weighted_majority(["a", "b"], weights)


def test_scores_that_cannot_be_compared_are_an_error() -> None:
    for scores in ([], [math.nan, 1.0]):
        with pytest.raises(UsageError, match="cannot choose"):
            best_of_n(scores)


@settings(deadline=None)
@given(st.floats(-700, 700))
def test_a_score_as_a_weight(score: float) -> None:
    assert 0.0 <= sigmoid(score) <= 1.0
    assert sigmoid(score) + sigmoid(-score) == pytest.approx(1.0)
    assert sigmoid(score + 1.0) >= sigmoid(score)
