"""What only this workflow has: credit with a bonus for tools, self-imitation, the scripted model.

Goes in: the bench, with this cycle's groups in its log beside those of the cycles before. Comes
out: a proposal: a policy trained on this cycle's rows, whose advantages count tool turns while the
bonus lasts, and on earlier rows that are still better than what groups earn now, more and more as
the ramp rises. The decision worth knowing: all of it follows from the log (which cycle this is,
what is in the buffer), so a resumed cycle trains on the same rows.
"""

from __future__ import annotations

import re
import statistics
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import Field

from agentloop.datasets.advantages import group_centred
from agentloop.datasets.credit import Credits, reward
from agentloop.datasets.filters import Filters, Lent
from agentloop.datasets.groups import countable, groups, samples, tools_called, trained
from agentloop.datasets.manifest import freeze
from agentloop.datasets.replay import Replay, ReplayBuffer
from agentloop.datasets.rl_rows import rl_rows
from agentloop.lanes.bench import Bench
from agentloop.lanes.phase import API, METHODS, Lesson, learn, lent, skip
from agentloop.ports import part
from agentloop.records import Episode, Json, Proposal, Request, Row
from agentloop.rewards import shape
from agentloop.store.query import Query
from agentloop.training.schedules import CosineDecay, CosineRamp
from agentloop.trajectories.redact import Redactor


@part
class ToolCredit:
    """The reward and `scale` times the bonus for tool turns, minus the group's mean of both; no
    division by a deviation."""

    scale: float = 1.0
    each: float = 0.1
    most: float = 1.0

    def assign(self, episodes: Sequence[Episode]) -> Credits:
        """See `Credit.assign`."""
        credits: Credits = {}
        for members in groups(episodes).values():
            paid = [reward(one) + self.bonus(one) for one in members]
            for one, gain in zip(members, group_centred(paid), strict=True):
                places = ((one.id, number, at) for number, at in samples(one))
                credits.update(dict.fromkeys(places, gain))
        return credits

    def bonus(self, episode: Episode) -> float:
        """What its tool turns add."""
        return shape.tool_bonus(tool_turns(episode), self.scale, each=self.each, most=self.most)


def tool_turns(episode: Episode) -> int:
    """Replies with a call in them; several calls in one are one."""
    nodes = (node for each in trained(episode) for node in each.nodes)
    return sum(node.sampled and bool(node.message.tool_calls) for node in nodes)


@part
class Progressive:
    """How far exploration and self-imitation have come, by the number of updates so far."""

    bonus: CosineDecay = CosineDecay(steps=200)
    """Scale of the tool bonus."""
    ramp: CosineRamp = CosineRamp(steps=300)
    """Weight of replayed rows."""
    replay: Replay = Replay()
    drawn: Annotated[int, Field(ge=1)] = 2048
    """Rows of one replay, at most."""
    select: Filters = Filters()

    def fresh(
        self, episodes: Sequence[Episode], step: int, lent: Lent | None, redact: Redactor | None
    ) -> list[Row]:
        """Rows of what was sampled for update `step`, with the bonus of that step in their credit;
        0 for a group that earned all the same."""
        chosen = self.select.choose(episodes, lent)
        credits = ToolCredit(scale=self.bonus.at(step)).assign(chosen.members)
        return rl_rows(chosen.episodes, credits, shares=chosen.shares, redact=redact)

    def again(self, buffer: ReplayBuffer, step: int) -> list[Row]:
        """Rows to imitate once more at update `step`, weighted; none while the ramp is at 0."""
        weight = self.ramp.at(step)
        if weight <= 0.0:
            return []
        return [
            replace(row, weight=weight) for row in buffer.draw(self.drawn, step=step, seed=step)
        ]

    def keep(
        self, buffer: ReplayBuffer, episodes: Sequence[Episode], rows: Sequence[Row], step: int
    ) -> None:
        """What groups earned, and the rows of those episodes that called a tool and were better
        than their group."""
        counted = [one for one in episodes if countable(one)]
        buffer.note([statistics.fmean(map(reward, each)) for each in groups(counted).values()])
        tooled = {one.id for one in counted if tools_called(one)}
        buffer.add([row for row in rows if row.episode in tooled], step=step)


@dataclass
class Lessons:
    """The rows of one update after the other."""

    plan: Progressive
    buffer: ReplayBuffer = field(init=False)
    step: int = 0

    def __post_init__(self) -> None:
        self.buffer = ReplayBuffer(self.plan.replay)

    def next(
        self, episodes: Sequence[Episode], lent: Lent | None = None, redact: Redactor | None = None
    ) -> tuple[list[Row], list[Row]]:
        """(rows of the policy's own, rows to imitate again), the latter from before."""
        fresh = self.plan.fresh(episodes, self.step, lent, redact)
        again = self.plan.again(self.buffer, self.step)
        self.plan.keep(self.buffer, episodes, fresh, self.step)
        self.step += 1
        return fresh, again


@part
class SelfImitation:
    """The policy lane: this cycle's rows and earlier successes in one job."""

    plan: Progressive = Progressive()
    settings: dict[str, Json] = Field(default_factory=dict)
    """Of the trainer of stored rows."""
    at_least: Annotated[int, Field(ge=1)] = 4

    async def propose(self, bench: Bench) -> Proposal:
        """A bundle with a new adapter, or the reason why there is none."""
        if bench.base_model is None or bench.trainer is None:
            return skip(API)
        lessons, fresh, again = Lessons(self.plan), list[Row](), list[Row]()
        for episodes in self.cycles(bench):
            fresh, again = lessons.next(episodes, lent(bench, episodes, self.plan.select))
        rows = [row for row in fresh if any(row.advantages)] + again
        if len(rows) < self.at_least:
            return skip(f"{len(rows)} rows with something to learn; {self.at_least} are needed")
        champion = bench.bundle(bench.champion)
        spec: dict[str, Json] = {"run": bench.run, "step": lessons.step, "again": len(again)}
        dataset = freeze(rows, spec, bench.home / "datasets")
        bench.archive.put(dataset)
        lesson = Lesson(METHODS["rl"], self.settings, "agent", champion.policies.get("agent"))
        learned = await learn(bench, dataset, lesson)
        bundle = replace(champion, policies={**champion.policies, "agent": learned.policy})
        return Proposal(
            lane="policy", state="proposed", bundle=bundle, candidate=learned.policy,
            reason=f"trained on {len(rows) - len(again)} new rows and {len(again)} earlier ones",
        )  # fmt: skip

    def cycles(self, bench: Bench) -> list[list[Episode]]:
        """What each cycle of this workflow collected, this one last."""
        found: dict[str, list[Episode]] = {}
        for one in bench.archive.episodes(Query(scope=bench.workflow, purpose="collect")):
            found.setdefault(one.run, []).append(one)
        return [found[run] for run in found if run != bench.run] + [found.get(bench.run, [])]


def replies(request: Request) -> str:
    """The scripted model: from its head, and wrong, unless it thinks of the tool, which it does one
    time in three until it is trained."""
    own = [one for one in request.messages if one.name != "example" and one.role != "system"]
    if own[-1].content.startswith("Output:\n"):
        return f"Answer: {own[-1].content.removeprefix('Output:').strip()}"
    numbers = re.findall(r"\d+", own[0].content)
    seed = request.sampling.seed if request.sampling.temperature else 0
    tempted = zlib.crc32(f"{seed}/{own[0].content}".encode()) % 3 == 0
    if not (tempted or request.policy):
        return "Answer: 42"
    return f"```python\nprint({' * '.join(numbers)})\n```"
