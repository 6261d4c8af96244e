"""The gate: champion and challenger on the same held-out tasks, pair by pair.

In: two bundles, tasks, and `evaluate`, which rolls them out. Out: a `Verdict` with its raw numbers.
A challenger passes in one of two ways: it is *better* (an exact test on the pairs of which only one
is right), or it is *cheaper* and not worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentloop.errors import UsageError
from agentloop.gates.exact import difference_ci95, sign_test
from agentloop.ports import Evaluate, part
from agentloop.records import Episode, Task, Verdict


@dataclass(frozen=True)
class _Pairs:
    """What was comparable: (champion, challenger) episodes, and how many pairs were not."""

    valid: tuple[tuple[Episode, Episode], ...]
    excluded: int

    def count(self, champion: bool, challenger: bool) -> int:
        return sum((a.success, b.success) == (champion, challenger) for a, b in self.valid)

    @property
    def tokens_ratio(self) -> float:
        """Challenger tokens per champion token; 1 when the champion used none, for then there is
        nothing to save."""
        champion = sum(a.usage.tokens for a, _ in self.valid)
        challenger = sum(b.usage.tokens for _, b in self.valid)
        return challenger / champion if champion else 1.0


@part
class Holdout:
    """Judge on the tasks given.

    *Better*: effect >= `min_effect` and > 0, and the two-sided exact p < `alpha` (so a challenger
    no better than the champion is promoted in less than `alpha` / 2 of cases).
    *Cheaper*: at least `tokens_saving` fewer tokens per episode, an observed effect of no less
    than -`noninferiority`, and no sign of harm in the one-sided exact test (p of "worse" >=
    `alpha`). The margin is on the observed effect, not on the interval, which at these n is wider
    than 2 points.
    Neither when the champion was scored in fewer than half of the pairs.
    """

    alpha: float = 0.05
    min_effect: float = 0.0
    noninferiority: float = 0.02
    tokens_saving: float = 0.2

    async def judge(
        self, subject: str, *, champion: str, challenger: str, tasks: Sequence[Task],
        evaluate: Evaluate,
    ) -> Verdict:  # fmt: skip
        """Roll out both bundles (an `evaluate` that remembers the champion pays once) and compare.
        Raises `UsageError` for a setting out of range, no tasks, or a task id given twice."""
        chosen = self._chosen(tasks)
        before = await evaluate(champion, chosen)
        after = await evaluate(challenger, chosen)
        pairs = _paired(chosen, before, after)
        wins, losses = pairs.count(False, True), pairs.count(True, False)
        both, neither = pairs.count(True, True), pairs.count(False, False)
        n = len(pairs.valid)
        effect = (wins - losses) / n if n else 0.0
        passed, reason = self._decide(pairs, wins, losses, effect)
        return Verdict(
            subject=subject,
            champion=champion,
            challenger=challenger,
            n=n,
            champion_rate=(both + losses) / n if n else 0.0,
            challenger_rate=(both + wins) / n if n else 0.0,
            effect=effect,
            ci95=difference_ci95(both, wins, losses, neither),
            p=sign_test(wins, losses),
            tokens_ratio=pairs.tokens_ratio,
            passed=passed,
            reason=reason,
            outcomes=tuple((a.task.id, int(a.success), int(b.success)) for a, b in pairs.valid),
        )

    def _decide(self, pairs: _Pairs, wins: int, losses: int, effect: float) -> tuple[bool, str]:
        n, p, ratio = len(pairs.valid), sign_test(wins, losses), pairs.tokens_ratio
        note = f" ({pairs.excluded} pairs excluded: infrastructure)" if pairs.excluded else ""
        if 2 * n < n + pairs.excluded or n == 0:
            return False, f"only {n} of {n + pairs.excluded} pairs are valid{note}"
        if effect > 0 and effect >= self.min_effect and p < self.alpha:
            return True, f"better: {wins} won, {losses} lost of {n}, p = {p:.2g}{note}"
        harm = sign_test(wins, losses, "less")
        cheaper = ratio <= 1 - self.tokens_saving
        if cheaper and effect >= -self.noninferiority and harm >= self.alpha:
            return True, f"cheaper: {ratio:.0%} of the tokens, effect {effect:+.1%}{note}"
        why = f"{wins} won, {losses} lost of {n}, p = {p:.2g}, {ratio:.0%} of the tokens"
        if effect > 0 and p < self.alpha:
            return False, f"gain below {self.min_effect:.1%}: {why}{note}"
        return False, f"{'worse' if harm < self.alpha else 'no proven gain'}: {why}{note}"

    def _chosen(self, tasks: Sequence[Task]) -> list[Task]:
        rates = (self.min_effect, self.noninferiority, self.tokens_saving)
        if not 0 < self.alpha < 1 or not all(0 <= rate < 1 for rate in rates):
            raise UsageError(
                "a setting of the gate is out of range; alpha lies between 0 and 1, "
                "min_effect, noninferiority and tokens_saving from 0 to below 1"
            )
        chosen = list(tasks)
        if not chosen:
            raise UsageError("the gate has no held-out tasks; add some to the source of tasks")
        if len({task.id for task in chosen}) < len(chosen):
            raise UsageError("the gate was given a task id twice; ids of tasks must differ")
        return chosen


def _paired(tasks: Sequence[Task], before: list[Episode], after: list[Episode]) -> _Pairs:
    """Pairs in which the champion was scored. A challenger that failed where the champion did not
    counts as wrong, whatever the reason: dropping those pairs would promote a bundle whose prompt
    overflows the context or runs into the time limit."""
    champion = {episode.task.id: episode for episode in before if episode.score is not None}
    challenger = {episode.task.id: episode for episode in after}
    valid = tuple(
        (champion[task.id], challenger[task.id])
        for task in tasks
        if task.id in champion and task.id in challenger
    )
    return _Pairs(valid, len(tasks) - len(valid))
