"""From proposals to one bundle: each lane alone, all together, and what may be left out.

Goes in: the lanes' proposals. Comes out: a `Decision` with every verdict. The rule: a lane joins
when it passes alone (or, when none does, all join); from the joint bundle a lane is dropped as
long as leaving it out does not lower the success rate, unless it is what makes the bundle
cheaper; what remains must pass against the champion on the whole hold-out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from agentloop.lanes.bench import Bench, Order
from agentloop.ports import Gate
from agentloop.records import Bundle, Episode, Proposal, Task, Verdict


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


@dataclass
class Judge:
    """Runs the gate over bundles on one hold-out; the first `lane_n` tasks judge single lanes."""

    bench: Bench
    gate: Gate
    tasks: Sequence[Task]
    lane_n: int

    subject: str = ""

    async def evaluate(self, bundle: str, tasks: Sequence[Task]) -> list[Episode]:
        """One episode per task; what the log knows is not run again."""
        label = "judge champion" if bundle == self.bench.champion else f"judge {self.subject}"
        order = Order(purpose="eval", subject="heldout", label=label)
        return await self.bench.attempt(tasks, self.bench.bundle(bundle), order)

    async def compare(self, subject: str, champion: str, challenger: str, n: int) -> Verdict:
        """A verdict on the first `n` tasks."""
        self.subject = subject
        return await self.gate.judge(
            subject, champion=champion, challenger=challenger, tasks=self.tasks[:n],
            evaluate=self.evaluate,
        )  # fmt: skip

    async def decide(self, proposals: Sequence[Proposal]) -> Decision:
        """Judge each proposal alone, then the bundle that unites the good ones."""
        champion = self.bench.champion
        proposed: dict[str, Bundle] = {
            p.lane: p.bundle for p in proposals if p.bundle is not None
        }
        if not proposed:
            return Decision(bundle=champion, lanes=(), final=None)
        alone = {
            lane: await self.compare(lane, champion, self.bench.archive.put(bundle), self.lane_n)
            for lane, bundle in proposed.items()
        }
        passing = [lane for lane in proposed if alone[lane].passed] or list(proposed)
        kept, joint = list(passing), None
        without: dict[str, Verdict] = {}
        dropped: dict[str, str] = {}
        if len(passing) > 1:
            joint = await self.compare(
                "joint", champion, self._unite(passing, proposed), self.lane_n
            )
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
        final = await self.compare("joint", champion, bundle, len(self.tasks))
        return Decision(bundle=bundle, lanes=tuple(kept), final=final, alone=dict(alone),
                        without=without, dropped=dropped, joint=joint)  # fmt: skip

    async def _droppable(
        self, kept: Sequence[str], proposed: dict[str, Bundle]
    ) -> tuple[str | None, dict[str, Verdict]]:
        """The lane whose removal hurts least, if it does not hurt at all; and the comparisons."""
        joint = self._unite(kept, proposed)
        verdicts: dict[str, Verdict] = {}
        best: tuple[float, float, str] | None = None
        for lane in kept:
            rest = self._unite([other for other in kept if other != lane], proposed)
            verdict = await self.compare(f"joint-without-{lane}", joint, rest, self.lane_n)
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
