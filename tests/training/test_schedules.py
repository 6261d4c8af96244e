"""Schedules at their ends and middles; stages that are left only when they may be."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import UsageError
from agentloop.training.schedules import (
    Bound,
    CosineDecay,
    CosineRamp,
    LinearRamp,
    Stage,
    StagePlan,
    broken,
)


def test_decay_and_its_mirror() -> None:
    decay, ramp = CosineDecay(steps=200), CosineRamp(steps=200)
    assert [decay.at(t) for t in (0, 100, 200, 201, 10**6)] == pytest.approx([1, 0.5, 0, 0, 0])
    assert [ramp.at(t) for t in (0, 100, 200, 201)] == pytest.approx([0, 0.5, 1, 1])
    assert CosineRamp(steps=10, peak=0.3).at(99) == pytest.approx(0.3)


@given(st.floats(0.5, 1e4), st.floats(0, 1e4), st.floats(0, 1e4))
def test_schedules_are_monotone_and_add_up(steps: float, a: float, b: float) -> None:
    low, high = sorted((a, b))
    decay, ramp = CosineDecay(steps=steps), CosineRamp(steps=steps)
    assert decay.at(low) >= decay.at(high)
    assert ramp.at(low) <= ramp.at(high)
    assert decay.at(a) + ramp.at(a) == pytest.approx(1.0)
    if a <= steps:
        assert decay.at(a) == pytest.approx((math.cos(math.pi * a / steps) + 1) / 2)


def test_trust_rises_with_a_measure() -> None:
    trust = LinearRamp(low=0.55, high=0.75)
    assert [trust.at(x) for x in (0.0, 0.55, 0.65, 0.75, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    with pytest.raises(UsageError):
        LinearRamp(low=1, high=1).at(0)
    with pytest.raises(UsageError):
        CosineDecay(steps=0).at(0)


PLAN = StagePlan(
    stages=[
        Stage(
            name="first",
            steps=10,
            leave={"gain": Bound(low=0.02), "drift": Bound(low=-0.02, high=0.02)},
            most=50,
        ),
        Stage(name="joint", steps=5, hold={"edits": Bound(low=0.02, high=0.9)}),
    ]
)


def test_a_stage_is_left_only_when_it_may_be() -> None:
    ready, drifted = {"gain": 0.05, "drift": 0.01}, {"gain": 0.05, "drift": 0.03}
    assert PLAN.next(0, 9, ready) == 0
    assert PLAN.next(0, 10, drifted) == 0
    assert PLAN.next(0, 10, {"gain": math.nan, "drift": 0.0}) == 0
    assert PLAN.next(0, 10, ready) == 1
    assert PLAN.next(0, 50, drifted) == 1
    assert PLAN.next(1, 5, {}) == 2 == len(PLAN)
    with pytest.raises(UsageError, match="gain"):
        PLAN.next(0, 10, {"drift": 0.0})


def test_stages_alternate_and_end() -> None:
    plan = StagePlan(stages=PLAN.stages, cycles=2)
    assert [plan.stage(at).name for at in range(len(plan))] == ["first", "joint"] * 2
    with pytest.raises(UsageError):
        plan.stage(4)
    assert broken(PLAN.stages[1].hold, {"edits": 0.01}) == ["edits"]
    assert broken(PLAN.stages[1].hold, {"edits": 0.5}) == []
