"""What only this workflow has: a reward that grades both attempts, the figures that say whether a
policy mends its answers, a lane that knows which stage it is in, and the scripted model.

Goes in: episodes of the graph `two_attempts`. Comes out: a score whose value is the second
attempt's and whose part `first` is the first's. The grader runs on what was logged, after the
rollout: no prompt can know what it says.
"""

from __future__ import annotations

import re
import statistics
import zlib
from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher

from pydantic import Field

from agentloop.datasets.credit import AttemptsCredit
from agentloop.datasets.groups import attempts
from agentloop.datasets.makers import RLRows
from agentloop.graphs.text import final_answer
from agentloop.lanes.bench import Bench
from agentloop.lanes.phase import Phase, skip
from agentloop.ports import part
from agentloop.records import Episode, Json, Proposal, Request, Score, Trajectory
from agentloop.rewards.verify import Numeric
from agentloop.store.query import Query
from agentloop.training.schedules import Stage, StagePlan, broken

SOURCE, EVENT = "both_attempts", "self_correction"
"""The reward's name, and the kind of the log's entries with a cycle's figures."""
SAME = 0.98
"""Texts that are as alike as this are one answer said twice."""


@part
class BothAttempts:
    """1 or 0 for the number that the second attempt ends with; the part `first` is that of the
    first attempt, `total` the sum of both, `edited` is 1 when the second text is another one."""

    tolerance: float = 1e-6

    async def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """One score per episode. Raises what `Numeric` raises."""
        grader = Numeric(tolerance=self.tolerance)
        seconds = await grader.score(episodes)
        firsts = await grader.score([_first(one) for one in episodes])
        return [
            replace(
                two, source=SOURCE,
                parts={"first": one.value, "total": one.value + two.value,
                       "edited": float(edited(episode))},
            )
            for episode, one, two in zip(episodes, firsts, seconds, strict=True)
        ]  # fmt: skip


def said(episode: Episode) -> tuple[str, str]:
    """What the model wrote in its two attempts; empty for one that it did not come to."""
    texts = {1: "", 2: ""}
    for trajectory in episode.trajectories:
        texts.update(_said(trajectory))
    return texts[1], texts[2]


def edited(episode: Episode, same: float = SAME) -> bool:
    """Whether the second attempt says something else than the first."""
    return likeness(episode) < same


def likeness(episode: Episode) -> float:
    """How alike the two texts are, from 0 to 1 (the share of matching characters)."""
    one, two = (" ".join(text.split()) for text in said(episode))
    return SequenceMatcher(None, one, two, autojunk=False).ratio()


def transitions(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """Of (first right, second right): both accuracies, their difference, and the shares of all
    that were mended and spoilt; `delta` is `mended` - `spoilt`."""

    def share(flags: list[bool]) -> float:
        return statistics.fmean(flags) if flags else 0.0

    one, two = share([first for first, _ in pairs]), share([second for _, second in pairs])
    return {
        "acc1": one, "acc2": two, "delta": two - one,
        "mended": share([second and not first for first, second in pairs]),
        "spoilt": share([first and not second for first, second in pairs]),
    }  # fmt: skip


def self_correction(episodes: Sequence[Episode]) -> dict[str, float]:
    """`transitions` of scored episodes, with the share whose text changed and the quartiles of how
    much of the text did (1 - likeness)."""
    scored = [one for one in episodes if one.score is not None]
    pairs = [(one.score.parts["first"] >= 1.0, one.success) for one in scored if one.score]
    changed = sorted(1.0 - likeness(one) for one in scored)
    quartiles = statistics.quantiles(changed, n=4) if len(changed) > 1 else [0.0, 0.0, 0.0]
    names = ("distance.q1", "distance.median", "distance.q3")
    return {
        **transitions(pairs),
        "edited": statistics.fmean(map(edited, scored)) if scored else 0.0,
        **dict(zip(names, quartiles, strict=True)),
    }


@part
class TwoStages:
    """One update per cycle, by the stage of `plan` that the workflow is in.

    A stage's settings: `bonus` and `first` of the credit (see `AttemptsCredit`), and of the anchor
    `weight` (all sampled tokens) and `hold` (added on those of the first attempt). Its bounds are
    on the figures of `self_correction` over the cycle's rollouts, and on `moved`: how far the first
    attempt's accuracy is from that of the first cycle.
    """

    plan: StagePlan
    settings: dict[str, Json] = Field(default_factory=dict)
    """Of the training, the anchor apart."""

    async def propose(self, bench: Bench) -> Proposal:
        """A bundle with a new policy, or why there is none: nothing to learn, the plan is through,
        or a bound of the stage does not hold any more."""
        found = bench.archive.episodes(Query(run=bench.run, purpose="collect"))
        measures = self_correction(found)
        past = [
            entry.body
            for entry in bench.archive.read(Query(kinds=(EVENT,), scope=bench.workflow))
            if isinstance(entry.body, dict) and entry.key != bench.run
        ]
        base = float(str(past[0]["acc1"])) if past else measures["acc1"]
        measures["moved"] = abs(measures["acc1"] - base)
        at, done = 0, 0
        if past:
            at, done = int(str(past[-1]["stage"])), int(str(past[-1]["done"]))
            after = self.plan.next(at, done, measures)
            at, done = (at, done) if after == at else (after, 0)
        body: dict[str, Json] = {**measures, "stage": at, "done": done + 1}
        bench.archive.add_event(EVENT, bench.run, bench.workflow, body)
        if at >= len(self.plan):
            return skip("all stages of the plan are through")
        stage = self.plan.stage(at)
        if names := broken(stage.hold, measures):
            return skip(f"the stage `{stage.name}` ends: {names[0]} is {measures[names[0]]:.2f}")
        return await self.phase(stage).propose(bench)

    def phase(self, stage: Stage) -> Phase:
        """The update of a stage."""
        given = {name: float(str(value)) for name, value in stage.settings.items()}
        anchor: dict[str, Json] = {
            "to": "base", "weight": given["weight"], "first": given["hold"], "estimator": "k2",
        }  # fmt: skip
        return Phase(
            credit=AttemptsCredit(bonus=given["bonus"], first=given["first"]), rows=RLRows(),
            settings={**self.settings, "anchor": anchor},
        )  # fmt: skip


def replies(request: Request) -> str:
    """The scripted model: adds, and slips now and then; asked again it is right more often, and
    always once it is trained."""
    own = [one for one in request.messages if one.name != "example" and one.role != "system"]
    numbers = [int(one) for one in re.findall(r"\d+", own[0].content)]
    again = sum(one.role == "assistant" for one in own)
    seed = request.sampling.seed if request.sampling.temperature else 0
    drawn = zlib.crc32(f"{seed}/{own[0].content}/{again}".encode()) % 8
    slips = drawn < (6 if again == 0 else 5) and not (request.policy and again)
    return f"{' + '.join(map(str, numbers))}\nAnswer: {sum(numbers) + slips}"


def _said(trajectory: Trajectory) -> dict[int, str]:
    which = attempts(trajectory)
    found: dict[int, str] = {}
    for attempt, node in zip(which, trajectory.nodes, strict=True):
        if node.sampled and attempt in (1, 2):
            found[attempt] = node.message.content
    return found


def _first(episode: Episode) -> Episode:
    """The episode as if it had ended with its first attempt."""
    text = said(episode)[0]
    if not text:
        return episode
    return replace(episode, answer=final_answer(text), failure=None)
