"""What stops a phase before it spoils a policy: figures in, one clear sentence out.

In: the figures of each update (`loss`, `kl`, `entropy`, `length`, `hack_rate`…). Out: nothing, or
a `TrainingError`. A phase that is stopped publishes nothing; its dataset and its log stay. The
decision worth knowing: what cannot be finite stops at once, what drifts must be seen `patience`
times in a row, so that one odd batch ends nothing. No torch here: rollout loops use it too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from agentloop.errors import TrainingError

WATCHED = ("loss", "grad_norm", "kl", "entropy", "length", "hack_rate")
"""The figures that are looked at; others are left alone."""

_KEPT = "nothing was published, and the dataset and the log are as they were"


class GuardSettings(BaseModel):
    """When to stop; `None` is never."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_kl: Annotated[float, Field(gt=0)] | None = 1.0
    """Nats per sampled token from the reference. A token that was likely is then, on average,
    less than half as likely."""
    min_entropy: Annotated[float, Field(ge=0, lt=1)] | None = 0.02
    """Share of the entropy that the phase began with."""
    max_growth: Annotated[float, Field(gt=1)] | None = 4.0
    """Mean sampled length as a multiple of the one that the phase began with."""
    max_hack_rate: Annotated[float, Field(ge=0, le=1)] | None = 0.2
    """Share of the rollouts that a screen flagged as having gamed their reward."""
    patience: Annotated[int, Field(ge=1)] = 3
    """So many readings in a row; the beginning is the mean of so many as well. In a phase of few
    updates at most half of them, or it could end before a guard has seen enough."""


@dataclass
class Guards:
    """One phase's watch: call `watch` after every update. `planned` is how many there will be, 0
    when that is not known."""

    settings: GuardSettings = field(default_factory=GuardSettings)
    planned: int = 0
    _first: dict[str, list[float]] = field(default_factory=dict)
    _bad: dict[str, int] = field(default_factory=dict)

    @property
    def patience(self) -> int:
        """Readings in a row that are enough."""
        most = self.settings.patience
        return min(most, max(1, self.planned // 2)) if self.planned else most

    def watch(self, step: int, figures: Mapping[str, float]) -> None:
        """Look at the figures of update `step`; figures that are not known are left alone.

        Raises `TrainingError` that names the figure, its value, its limit and what to change.
        """
        for name in WATCHED:
            if name in figures:
                self._look(name, float(figures[name]), step)

    def _look(self, name: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"the {_SAID.get(name, name)} became {value} at step {step}; "
                f"lower the learning rate ({_KEPT})"
            )
        limit = self._limit(name, value)
        beyond = limit is not None and (value < limit if name == "entropy" else value > limit)
        self._bad[name] = self._bad.get(name, 0) + 1 if beyond else 0
        if self._bad[name] >= self.patience:
            times = f", {self.patience} times in a row" if self.patience > 1 else ""
            raise TrainingError(
                f"{_WHAT[name]} at step {step}: {value:.4g}, and the limit is {limit:.4g}"
                f"{times}; {_MENDED[name]} ({_KEPT})"
            )

    def _limit(self, name: str, value: float) -> float | None:
        """The bound of a figure; those that are relative have none until the beginning is known."""
        given = self.settings
        if name == "kl":
            return given.max_kl
        if name == "hack_rate":
            return given.max_hack_rate
        factor = {"entropy": given.min_entropy, "length": given.max_growth}.get(name)
        if factor is None:
            return None
        first = self._first.setdefault(name, [])
        if len(first) < self.patience:
            first.append(value)
            return None
        return factor * sum(first) / len(first)


_SAID = {"grad_norm": "gradient's norm", "kl": "divergence", "hack_rate": "hack rate"}
_WHAT = {
    "kl": "the policy left its reference",
    "entropy": "the policy's entropy collapsed",
    "length": "the policy's answers grew too long",
    "hack_rate": "too many rollouts gamed their reward",
}
_MENDED = {
    "kl": "lower the learning rate, raise the weight of the anchor, or raise `guards.max_kl`",
    "entropy": "lower the learning rate, add an entropy bonus, or lower `guards.min_entropy`",
    "length": "add a length penalty, or raise `guards.max_growth`",
    "hack_rate": "mend the reward or the screen, or raise `guards.max_hack_rate`",
}
