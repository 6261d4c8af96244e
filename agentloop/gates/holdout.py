"""The gate of a fixed size: champion and challenger on all the tasks given, pair by pair.

In: two bundles, tasks, and `evaluate`, which rolls them out. Out: a `Verdict` with its raw numbers.
A challenger passes in one of two ways: it is *better* (an exact test on the pairs of which only one
is right), or it is *cheaper* and not worse. `gates.sequential` asks the same and stops early.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentloop.gates.exact import difference_ci95, sign_test
from agentloop.gates.guards import Guards
from agentloop.gates.pairs import Pairs, distinct, guarded, in_range, paired
from agentloop.ports import Evaluate, part
from agentloop.records import Task, Verdict


@part
class Holdout:
    """Judge on the tasks given.

    *Better*: effect >= `min_effect` and > 0, and the two-sided exact p < `alpha` (so a challenger
    no better than the champion is promoted in less than `alpha` / 2 of cases).
    *Cheaper*: at least `tokens_saving` fewer tokens per episode, an observed effect of no less
    than -`noninferiority`, and no sign of harm in the one-sided exact test (p of "worse" >=
    `alpha`). The margin is on the observed effect, not on the interval, which at these n is wider
    than 2 points.
    Neither when the champion was scored in fewer than half of the pairs, when more than half of the
    challenger's rollouts came to no score (it is refused), or when a guard objects.
    """

    alpha: float = 0.05
    min_effect: float = 0.0
    noninferiority: float = 0.02
    tokens_saving: float = 0.2
    guards: Guards = Guards()

    async def judge(
        self, subject: str, *, champion: str, challenger: str, tasks: Sequence[Task],
        evaluate: Evaluate, share: float = 1.0,
    ) -> Verdict:  # fmt: skip
        """Roll out both bundles (an `evaluate` that remembers the champion pays once) and compare.
        Raises `UsageError` for a setting out of range, no tasks, or a task id given twice."""
        in_range(self.alpha, self.min_effect, self.noninferiority, self.tokens_saving)
        chosen = distinct(tasks)
        before = await evaluate(champion, chosen)
        pairs = paired(chosen, before, await evaluate(challenger, chosen))
        alpha = self.alpha * share
        stopped, reason = self._decide(pairs, alpha)
        verdict = Verdict(
            subject=subject, champion=champion, challenger=challenger,
            ci95=difference_ci95(
                pairs.count(True, True), pairs.wins, pairs.losses, pairs.count(False, False)
            ),
            p=sign_test(pairs.wins, pairs.losses), alpha=alpha, planned=len(chosen),
            passed=stopped in ("better", "cheaper"), stopped=stopped, reason=reason + pairs.note,
            **pairs.facts(),
        )  # fmt: skip
        return guarded(verdict, pairs, self.guards)

    def _decide(self, pairs: Pairs, alpha: float) -> tuple[str, str]:
        """(`better`, `cheaper`, `worse`, `refused` or `limit`; a sentence)."""
        if pairs.too_few:
            return "limit", pairs.too_few
        if pairs.broken:
            return "refused", f"refused: {pairs.broken}"
        wins, losses, n, ratio = pairs.wins, pairs.losses, len(pairs), pairs.tokens_ratio
        effect, p = pairs.effect, sign_test(wins, losses)
        if effect > 0 and effect >= self.min_effect and p < alpha:
            return "better", f"better: {wins} won, {losses} lost of {n}, p = {p:.2g}"
        harm = sign_test(wins, losses, "less")
        cheaper = ratio <= 1 - self.tokens_saving
        if cheaper and effect >= -self.noninferiority and harm >= alpha:
            return "cheaper", f"cheaper: {ratio:.0%} of the tokens, effect {effect:+.1%}"
        why = f"{wins} won, {losses} lost of {n}, p = {p:.2g}, {ratio:.0%} of the tokens"
        if effect > 0 and p < alpha:
            return "limit", f"gain below {self.min_effect:.1%}: {why}"
        if harm < alpha:
            return "worse", f"worse: {why}"
        return "limit", f"no proven gain: {why}"
