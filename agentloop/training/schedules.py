"""Numbers that change over a training run, and plans of stages. No torch, no state.

In: a step (or a measure). Out: a coefficient, or the stage to be in. A schedule is a value, so a
resumed run asks it for its step and goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field

from agentloop.errors import UsageError
from agentloop.ports import part
from agentloop.records import Json


@part
class CosineDecay:
    """(cos(pi t / steps) + 1) / 2, then 0: from 1 to 0 (the weight of an exploration bonus)."""

    steps: float
    peak: float = 1.0

    def at(self, step: float) -> float:
        """`peak` at 0, half of it in the middle, 0 from `steps` on."""
        return self.peak * (1.0 - _risen(step, self.steps))


@part
class CosineRamp:
    """The mirror of `CosineDecay`: (1 - cos(pi t / steps)) / 2, then `peak` (the weight of
    imitating one's own successes, which early would lock in the first lucky one)."""

    steps: float
    peak: float = 1.0

    def at(self, step: float) -> float:
        """0 at 0, half of `peak` in the middle, `peak` from `steps` on."""
        return self.peak * _risen(step, self.steps)


@part
class LinearRamp:
    """From 0 at `low` to `peak` at `high`, straight between; its argument may be a measure (trust
    in a learned reward as its accuracy rises)."""

    low: float
    high: float
    peak: float = 1.0

    def at(self, step: float) -> float:
        """Raises `UsageError` unless `low` is below `high`."""
        if not self.low < self.high:
            raise UsageError(f"a ramp from {self.low} to {self.high} does not rise")
        return self.peak * min(1.0, max(0.0, (step - self.low) / (self.high - self.low)))


@part
class Bound:
    """A condition on one measure; an absent end is no condition."""

    low: float = -math.inf
    high: float = math.inf

    def holds(self, value: float) -> bool:
        """Within both ends; a value that is not a number is not."""
        return self.low <= value <= self.high


@part
class Stage:
    """One stage: at least `steps` long, and left only when every bound of `leave` holds (or after
    `most` steps). The run ends in it as soon as a bound of `hold` does not."""

    name: str
    steps: int
    settings: dict[str, Json] = field(default_factory=dict)
    leave: dict[str, Bound] = field(default_factory=dict)
    hold: dict[str, Bound] = field(default_factory=dict)
    most: int | None = None


@part
class StagePlan:
    """Stages in order. `cycles` > 1 goes through them again (alternation)."""

    stages: list[Stage]
    cycles: int = 1

    def __len__(self) -> int:
        return len(self.stages) * self.cycles

    def stage(self, at: int) -> Stage:
        """Stage number `at`, counted from 0 over all cycles. Raises `UsageError` past the end."""
        if not 0 <= at < len(self):
            raise UsageError(f"the plan has {len(self)} stages, not one number {at}")
        return self.stages[at % len(self.stages)]

    def next(self, at: int, done: int, measures: Mapping[str, float]) -> int:
        """The number of the stage to be in after `done` steps in stage `at`; `len(self)`: the end.

        Raises `UsageError` when a bound names a measure that was not made.
        """
        stage = self.stage(at)
        if done < stage.steps:
            return at
        if stage.most is not None and done >= stage.most:
            return at + 1
        return at + 1 if not broken(stage.leave, measures) else at


def broken(bounds: Mapping[str, Bound], measures: Mapping[str, float]) -> list[str]:
    """The names of the bounds that do not hold. Raises `UsageError` for one without a measure."""
    if missing := sorted(bounds.keys() - measures.keys()):
        raise UsageError(f"the measure `{missing[0]}` that a stage is bound by was not made")
    return [name for name, bound in bounds.items() if not bound.holds(measures[name])]


def _risen(step: float, steps: float) -> float:
    """(1 - cos(pi t)) / 2 for t = step / steps in [0, 1]."""
    if not steps > 0:
        raise UsageError(f"a schedule over {steps} steps; give a positive number")
    return (1.0 - math.cos(math.pi * min(1.0, max(0.0, step / steps)))) / 2.0
