"""Pairs: champion and challenger on the same held-out task, and the numbers that all gates tell.

In: tasks and the episodes of both bundles. Out: `Pairs`. The decision worth knowing: a challenger
that failed where the champion was scored counts as wrong, whatever the reason; dropping those pairs
would promote a bundle whose prompt overflows the context or runs into the time limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from agentloop.errors import UsageError
from agentloop.gates.guards import Guards, measure
from agentloop.records import Episode, Task, Verdict


@dataclass(frozen=True)
class Pairs:
    """What was comparable: (champion, challenger) episodes, and how many pairs were not."""

    valid: tuple[tuple[Episode, Episode], ...] = ()
    excluded: int = 0
    """Pairs in which the champion was not scored."""

    def __add__(self, more: Pairs) -> Pairs:
        return Pairs(self.valid + more.valid, self.excluded + more.excluded)

    def __len__(self) -> int:
        return len(self.valid)

    def count(self, champion: bool, challenger: bool) -> int:
        """Pairs with this outcome."""
        return sum((a.success, b.success) == (champion, challenger) for a, b in self.valid)

    @property
    def wins(self) -> int:
        """Pairs that only the challenger solved."""
        return self.count(False, True)

    @property
    def losses(self) -> int:
        """Pairs that only the champion solved."""
        return self.count(True, False)

    @property
    def differences(self) -> list[float]:
        """Success of the challenger less that of the champion, pair by pair: 1, 0 or -1."""
        return [float(b.success) - float(a.success) for a, b in self.valid]

    @property
    def effect(self) -> float:
        """The mean difference; 0 without pairs."""
        return (self.wins - self.losses) / len(self) if self.valid else 0.0

    @property
    def tokens_ratio(self) -> float:
        """Challenger tokens per champion token; 1 when the champion used none, for then there is
        nothing to save."""
        champion = sum(a.usage.tokens for a, _ in self.valid)
        challenger = sum(b.usage.tokens for _, b in self.valid)
        return challenger / champion if champion else 1.0

    @property
    def too_few(self) -> str:
        """Why nothing can be said, when the champion was scored in fewer than half of the pairs."""
        given = len(self) + self.excluded
        if self.valid and 2 * len(self) >= given:
            return ""
        return f"only {len(self)} of {given} pairs are valid"

    @property
    def broken(self) -> str:
        """Why there is nothing to compare, when more than half of the challenger's rollouts came to
        no score where the champion's did."""
        unscored = [b for _, b in self.valid if b.score is None]
        if 2 * len(unscored) <= len(self):
            return ""
        failure = unscored[0].failure
        first = f"; the first: {failure.reason}: {failure.detail}" if failure else ""
        return f"{len(unscored)} of its {len(self)} rollouts came to no score{first}"

    @property
    def note(self) -> str:
        """What to add to a sentence about pairs that were left out."""
        return f" ({self.excluded} pairs excluded: infrastructure)" if self.excluded else ""

    def facts(self) -> dict[str, Any]:
        """The fields of a `Verdict` that are counts and rates."""
        n = len(self)
        both = self.count(True, True)
        return {
            "n": n,
            "excluded": self.excluded,
            "champion_rate": (both + self.losses) / n if n else 0.0,
            "challenger_rate": (both + self.wins) / n if n else 0.0,
            "effect": self.effect,
            "tokens_ratio": self.tokens_ratio,
            "outcomes": tuple((a.task.id, int(a.success), int(b.success)) for a, b in self.valid),
        }


def paired(tasks: Sequence[Task], before: Sequence[Episode], after: Sequence[Episode]) -> Pairs:
    """The champion's (`before`) and the challenger's episodes, matched by task."""
    champion = {episode.task.id: episode for episode in before if episode.score is not None}
    challenger = {episode.task.id: episode for episode in after}
    valid = tuple(
        (champion[task.id], challenger[task.id])
        for task in tasks
        if task.id in champion and task.id in challenger
    )
    return Pairs(valid, len(tasks) - len(valid))


def distinct(tasks: Sequence[Task]) -> list[Task]:
    """The tasks; raises `UsageError` when there are none or an id comes twice."""
    chosen = list(tasks)
    if not chosen:
        raise UsageError("the gate has no held-out tasks; add some to the source of tasks")
    if len({task.id for task in chosen}) < len(chosen):
        raise UsageError("the gate was given a task id twice; ids of tasks must differ")
    return chosen


def in_range(alpha: float, *rates: float) -> None:
    """Raise `UsageError` for a setting that cannot work."""
    if not 0 < alpha < 1 or not all(0 <= rate < 1 for rate in rates):
        raise UsageError(
            "a setting of the gate is out of range; alpha and power lie between 0 and 1, "
            "min_effect, noninferiority and tokens_saving from 0 to below 1"
        )


def guarded(verdict: Verdict, pairs: Pairs, guards: Guards) -> Verdict:
    """The verdict with the guards' raw numbers; one that would have passed is refused when a guard
    objects."""
    figures, refusal = measure(guards, pairs.valid)
    verdict = replace(verdict, guards=figures)
    if not verdict.passed or not refusal:
        return verdict
    return replace(verdict, passed=False, stopped="refused", reason=f"refused: {refusal}")
