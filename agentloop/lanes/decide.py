"""From proposals to one bundle: each lane alone, all together, and what may be left out.

Goes in: the lanes' proposals. Comes out: a `Decision` with every verdict. The rule: a lane joins
when it passes alone. When none does, all join of which nothing is known yet: not refused, not
worse, not without a gain to be expected; where there is none, the deciding tasks stay unused. From
the joint bundle a lane is dropped as long as leaving it out does not lower the success rate, unless
it is what makes the bundle cheaper. What remains must pass against the champion on tasks that none
of this has looked at, so that its verdict holds however the lanes were chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from agentloop.errors import PolicyError, ServerError
from agentloop.gates.guards import probed
from agentloop.gates.holdout import Holdout
from agentloop.lanes.bench import Bench, Order
from agentloop.lanes.heldout import HoldOut
from agentloop.ports import Gate
from agentloop.records import Bundle, Episode, Proposal, Task, Verdict

_OUT = ("refused", "worse", "futile")
"""How a verdict on a lane alone stopped that keeps it from joining others."""


@dataclass(frozen=True)
class Decision:
    """What was decided and from which numbers."""

    bundle: str
    """Id of the final challenger (the champion's when nothing was proposed)."""
    lanes: tuple[str, ...]
    """The lanes it contains."""
    final: Verdict | None
    alone: dict[str, Verdict] = field(default_factory=dict)
    without: dict[str, Verdict] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    """Lane -> why it was left out of the joint bundle."""
    joint: Verdict | None = None
    """All passing lanes together, before any was dropped."""

    @property
    def verdicts(self) -> list[Verdict]:
        """All of them, in the order in which they were found."""
        found = (*self.alone.values(), self.joint, *self.without.values(), self.final)
        return [verdict for verdict in found if verdict is not None]


@dataclass
class Judge:
    """Runs the gate over bundles: single lanes with a share of its alpha each, then the final one
    on tasks of its own and on the probes. What only helps to choose is an estimate on all the
    tasks for lanes, which promotes nothing."""

    bench: Bench
    gate: Gate
    tasks: HoldOut
    probes: Sequence[Task] = ()
    subject: str = ""

    async def evaluate(self, bundle: str, tasks: Sequence[Task]) -> list[Episode]:
        """One episode per task; what the log knows is not run again."""
        label = "judge champion" if bundle == self.bench.champion else f"judge {self.subject}"
        order = Order(purpose="eval", subject="heldout", label=label)
        try:
            return await self.bench.attempt(tasks, self.bench.bundle(bundle), order)
        except PolicyError as error:
            if bundle != self.bench.champion:
                raise
            raise ServerError(str(error)) from error  # nothing that a challenger could help

    async def alone(self, lane: str, challenger: str, share: float) -> Verdict:
        """One lane against the champion, with its share of the gate's alpha."""
        self.subject = lane
        try:
            return await self.gate.judge(
                lane, champion=self.bench.champion, challenger=challenger, tasks=self.tasks.lanes,
                evaluate=self.evaluate, share=share,
            )  # fmt: skip
        except PolicyError as error:
            return _unservable(lane, (self.bench.champion, challenger), error)

    async def estimate(self, subject: str, champion: str, challenger: str) -> Verdict:
        """How two bundles compare on all tasks for lanes."""
        self.subject = subject
        return await Holdout().judge(
            subject, champion=champion, challenger=challenger, tasks=self.tasks.lanes,
            evaluate=self.evaluate,
        )  # fmt: skip

    async def last(self, challenger: str) -> Verdict:
        """The verdict that decides, on the hidden tasks; one that would pass is shown the probes.
        Infrastructure that fails on a probe counts against the challenger alone."""
        self.subject, champion = "joint", self.bench.champion
        try:
            verdict = await self.gate.judge(
                "joint", champion=champion, challenger=challenger, tasks=self.tasks.final,
                evaluate=self.evaluate, share=self.tasks.share,
            )  # fmt: skip
        except PolicyError as error:
            verdict = _unservable("joint", (champion, challenger), error)
        verdict = replace(verdict, final=True, use=self.tasks.use)
        if not verdict.passed or not self.probes:
            return verdict
        before = await self.evaluate(champion, self.probes)
        figures, refusal = probed(before, await self.evaluate(challenger, self.probes))
        verdict = replace(verdict, guards={**verdict.guards, "probes": figures})
        if not refusal:
            return verdict
        return replace(verdict, passed=False, stopped="refused", reason=f"refused: {refusal}")

    async def decide(self, proposals: Sequence[Proposal]) -> Decision:
        """Judge each proposal alone, then the bundle that unites the good ones."""
        proposed: dict[str, Bundle] = {p.lane: p.bundle for p in proposals if p.bundle is not None}
        if not proposed:
            return Decision(bundle=self.bench.champion, lanes=(), final=None)
        alone = {
            lane: await self.alone(lane, self.bench.archive.put(bundle), 1 / len(proposed))
            for lane, bundle in proposed.items()
        }
        fit = [lane for lane in proposed if alone[lane].stopped not in _OUT]
        passing = [lane for lane in fit if alone[lane].passed] or fit
        if not passing:
            return Decision(bundle=self.bench.champion, lanes=(), final=None, alone=alone)
        kept, joint = list(passing), None
        without: dict[str, Verdict] = {}
        dropped: dict[str, str] = {}
        if len(passing) > 1:
            union = self._unite(passing, proposed)
            joint = await self.estimate("joint", self.bench.champion, union)
        while len(kept) > 1:
            lane, verdicts = await self._droppable(kept, proposed)
            without.update(verdicts)
            if lane is None:
                break
            kept = [one for one in kept if one != lane]
            verdict = verdicts[f"joint-without-{lane}"]
            dropped[lane] = (
                f"without it the bundle reaches {verdict.challenger_rate:.0%} "
                f"instead of {verdict.champion_rate:.0%}"
            )
        bundle = self._unite(kept, proposed)
        return Decision(bundle=bundle, lanes=tuple(kept), final=await self.last(bundle),
                        alone=alone, without=without, dropped=dropped, joint=joint)  # fmt: skip

    async def _droppable(
        self, kept: Sequence[str], proposed: dict[str, Bundle]
    ) -> tuple[str | None, dict[str, Verdict]]:
        """The lane whose removal hurts least, if it does not hurt at all; and the comparisons."""
        joint = self._unite(kept, proposed)
        verdicts: dict[str, Verdict] = {}
        best: tuple[float, float, str] | None = None
        for lane in kept:
            rest = self._unite([other for other in kept if other != lane], proposed)
            verdict = await self.estimate(f"joint-without-{lane}", joint, rest)
            verdicts[verdict.subject] = verdict
            # tokens_ratio compares the rest with the joint: above 1.25 the lane saves >= 20 %.
            saves = verdict.tokens_ratio >= 1.25 and verdict.effect <= 0.02
            if verdict.effect >= 0.0 and not saves:
                rank = (verdict.effect, -verdict.tokens_ratio, lane)
                best = max(best, rank) if best else rank
        return (best[2] if best else None), verdicts

    def _unite(self, lanes: Sequence[str], proposed: dict[str, Bundle]) -> str:
        bundle = self.bench.bundle(self.bench.champion)
        for lane in lanes:
            change = proposed[lane]
            if lane == "instructions":
                bundle = replace(bundle, instruction=change.instruction)
            elif lane == "skills":
                bundle = replace(bundle, skills=change.skills)
            else:
                bundle = replace(bundle, policies={**bundle.policies, **change.policies})
        return self.bench.archive.put(bundle)


def _unservable(subject: str, bundles: tuple[str, str], error: PolicyError) -> Verdict:
    """The verdict on a bundle that no server takes: nothing was compared."""
    return Verdict(
        subject=subject, champion=bundles[0], challenger=bundles[1], n=0, champion_rate=0.0,
        challenger_rate=0.0, effect=0.0, ci95=(-1.0, 1.0), p=1.0, tokens_ratio=1.0, passed=False,
        stopped="refused", reason=f"refused: {error}",
    )  # fmt: skip
