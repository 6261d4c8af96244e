"""Mixed rewards: the mean, the parts, and whose success counts."""

from __future__ import annotations

import pytest
from grading_fixtures import episode, grade
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import UsageError
from agentloop.ports import Reward
from agentloop.rewards.mix import Mix
from agentloop.rewards.verify import Exact, Numeric


def test_the_mean_is_weighted_and_the_first_decides() -> None:
    mix = Mix(parts=[(Exact(), 3.0), (Numeric(), 1.0)])
    assert isinstance(mix, Reward)
    same, close, wrong = grade(mix, episode("4", 4), episode("it is 4", 4), episode("5", 4))
    assert (same.value, same.success, same.feedback) == (1.0, True, "")
    assert (close.value, close.success) == (0.25, False)
    assert list(close.parts.values()) == [0.0, 1.0]
    assert close.source == "agentloop.rewards.verify:Exact + agentloop.rewards.verify:Numeric"
    assert wrong.value == 0 and wrong.feedback.count("expected 4, got 5") == 2


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6))
def test_all_right_is_1_whatever_the_weights(weights: list[float]) -> None:
    (score,) = grade(Mix(parts=[(Exact(), weight) for weight in weights]), episode("4", 4))
    assert score.value == pytest.approx(1.0) and score.value <= 1.0
    assert len(score.parts) == len(weights)


@pytest.mark.parametrize("parts", [[], [(Exact(), 0.0)], [(Exact(), float("nan"))], [(3, 1.0)]])
def test_unusable_parts(parts: list[tuple[object, float]]) -> None:
    with pytest.raises(UsageError):
        grade(Mix(parts=parts), episode("4", 4))
