"""Shaped rewards keep the order that the verifier gives."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import UsageError
from agentloop.rewards.shape import tool_bonus, verified_and_modelled

ANY = st.floats(allow_nan=False)


@given(ANY, ANY)
def test_every_right_answer_is_above_every_wrong_one(right: float, wrong: float) -> None:
    assert verified_and_modelled(right, True) > 0 > verified_and_modelled(wrong, False)


def test_within_a_class_the_model_decides() -> None:
    assert verified_and_modelled(2.0, True) > verified_and_modelled(1.0, True)
    assert verified_and_modelled(0.0, True) == 0.5
    assert verified_and_modelled(2.0, False) == pytest.approx(1 / (1 + math.exp(-1.0)) - 1)


def test_without_the_bound_the_sigmoid_saturates() -> None:
    """Why the score is held: far out, right and wrong would tie at 0."""
    assert 1.0 / (1.0 + math.exp(-0.5 * 200.0)) - 1.0 == 0.0
    assert verified_and_modelled(200.0, False) < 0.0
    with pytest.raises(UsageError):
        verified_and_modelled(0.0, True, most=1e3)
    with pytest.raises(UsageError):
        verified_and_modelled(math.nan, True)


def test_a_tool_bonus_is_capped_and_fades() -> None:
    assert tool_bonus(3, 1.0) == pytest.approx(0.3)
    assert tool_bonus(50, 1.0) == 1.0
    assert tool_bonus(50, 0.0) == 0.0
    with pytest.raises(UsageError):
        tool_bonus(-1, 1.0)
