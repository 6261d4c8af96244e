"""The gate that stops as soon as it knows: batches of pairs, and a bet on each hypothesis.

In: two bundles, at most so many tasks, and `evaluate`, which rolls them out. Out: a `Verdict` with
its raw numbers. The decision worth knowing: what is compared is success (0 or 1), which is what a
promotion promises, not graded rewards; and a bet (`gates.betting`) may be looked at after every
pair, so stopping early costs nothing in the rate of false promotions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from agentloop.gates.betting import evidence, interval
from agentloop.gates.guards import Guards
from agentloop.gates.pairs import Pairs, distinct, guarded, in_range, paired
from agentloop.ports import Evaluate, part
from agentloop.records import Task, Verdict


@part
class Sequential:
    """Judge in batches, on at most the tasks given.

    *Better*: the bet on an effect above 0 reached 1 / `alpha`, and the observed effect is at least
    `min_effect` and above 0. *Worse*: the bet on an effect below 0 reached it. *Futile*: the bet on
    an effect below `min_effect` reached 1 / (1 - `power`), so that of challengers with that effect
    or a larger one at most 1 - `power` are given up; it stops nothing that may be cheaper.
    *Cheaper*: at least `tokens_saving` fewer tokens, as observed, and the bet on an effect above
    -`noninferiority` reached 1 / `alpha`: one that solves just the same tasks gets there at an
    alpha of 0.03 after some 180 pairs. A challenger that is worse by more than that passes in
    either way with a chance of at most `alpha` in all: the bet on better is never worth more than
    the one on not worse.
    Neither when the champion was scored in fewer than half of the pairs, when more than half of the
    challenger's rollouts came to no score (it is refused), or when a guard objects.
    The verdict's `p` (one-sided: 1 / the worth of the bet on better) and `ci95` hold at any time.
    """

    alpha: float = 0.05
    min_effect: float = 0.1
    power: float = 0.9
    noninferiority: float = 0.03
    tokens_saving: float = 0.2
    batch: Annotated[int, Field(ge=1)] = 16
    guards: Guards = Guards()

    async def judge(
        self, subject: str, *, champion: str, challenger: str, tasks: Sequence[Task],
        evaluate: Evaluate, share: float = 1.0,
    ) -> Verdict:  # fmt: skip
        """Roll out both bundles batch by batch (an `evaluate` that remembers pays for the champion
        once) and stop when it is decided. Raises `UsageError` for a setting out of range, no tasks,
        or a task id given twice."""
        in_range(self.alpha, self.min_effect, self.noninferiority, self.tokens_saving)
        in_range(self.power)
        chosen, alpha = distinct(tasks), self.alpha * share
        pairs, bets, stopped = Pairs(), dict[str, float](), "limit"
        for start in range(0, len(chosen), self.batch):
            some = chosen[start : start + self.batch]
            before = await evaluate(champion, some)
            pairs += paired(some, before, await evaluate(challenger, some))
            bets = self._bets(pairs)
            stopped = self._decide(pairs, bets, alpha)
            if stopped != "limit":
                break
        verdict = Verdict(
            subject=subject, champion=champion, challenger=challenger,
            ci95=interval(pairs.differences), p=1 / bets["better"],
            alpha=alpha, evidence=bets, planned=len(chosen), stopped=stopped,
            passed=stopped in ("better", "cheaper"),
            reason=self._reason(stopped, pairs, bets, alpha) + pairs.note, **pairs.facts(),
        )  # fmt: skip
        return guarded(verdict, pairs, self.guards)

    def _bets(self, pairs: Pairs) -> dict[str, float]:
        """The most that each bet was worth so far."""
        up = pairs.differences
        down = [-one for one in up]
        return {
            "better": evidence(up),
            "worse": evidence(down),
            "below_min_effect": evidence(down, null=-self.min_effect),
            "not_worse": evidence(up, null=-self.noninferiority),
        }

    def _decide(self, pairs: Pairs, bets: dict[str, float], alpha: float) -> str:
        """Why to stop here; `limit` when there is no reason yet."""
        if pairs.too_few:
            return "limit"
        if pairs.broken:
            return "refused"
        if bets["worse"] >= 1 / alpha:
            return "worse"
        if bets["better"] >= 1 / alpha and pairs.effect >= self.min_effect and pairs.effect > 0:
            return "better"
        cheaper = pairs.tokens_ratio <= 1 - self.tokens_saving
        if cheaper and bets["not_worse"] >= 1 / alpha:
            return "cheaper"
        futile = bets["below_min_effect"] >= 1 / (1 - self.power)
        return "futile" if futile and not cheaper else "limit"

    def _reason(self, stopped: str, pairs: Pairs, bets: dict[str, float], alpha: float) -> str:
        if pairs.too_few or pairs.broken:
            return pairs.too_few or f"refused: {pairs.broken}"
        seen = f"{pairs.wins} won, {pairs.losses} lost of {len(pairs)}"
        grown = f"the bet on it grew {bets['better']:.3g}-fold, {1 / alpha:.3g} are needed"
        match stopped:
            case "better":
                return f"better: {seen}, p = {1 / bets['better']:.2g}"
            case "cheaper":
                return f"cheaper: {pairs.tokens_ratio:.0%} of the tokens and not worse: {seen}"
            case "worse":
                return f"worse: {seen}"
            case "futile":
                return f"no gain of {self.min_effect:.0%} or more to be expected: {seen}"
        if bets["better"] >= 1 / alpha and pairs.effect < self.min_effect:
            return f"gain below {self.min_effect:.0%}: {seen}"
        return f"no proven gain: {seen}; {grown}"
