"""What only this workflow has: one round of its loop between reward model and policy, and the
scripted model.

Goes in: the bench, with groups of samples in its log. Comes out: a proposal: a policy trained on
the samples that the reward model ranks highest among the right ones, where the answer is known, or
among those that agree with the reward-model-weighted vote, where it is not.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from agentloop.datasets.decontaminate import Decontaminate
from agentloop.datasets.manifest import freeze, rows_path
from agentloop.datasets.rows import sft_rows
from agentloop.datasets.select import guard_held_out, trainable
from agentloop.lanes.bench import Bench
from agentloop.lanes.gated import held_out
from agentloop.lanes.policy import RejectionSampling
from agentloop.ports import part
from agentloop.records import Episode, Json, Proposal, Request, Row, TrainingJob, content_id
from agentloop.rewards.linear import Vectors, pairwise
from agentloop.rewards.verify import normalised
from agentloop.rewards.vote import sigmoid, weighted_majority
from agentloop.store.query import Query
from agentloop.tasks.split import fraction
from agentloop.training.scoring import RewardModel
from agentloop.trajectories.redact import Redactor

METHOD = "agentloop.training.reward_model:train"
EVENT = "reward_model"
"""Kind of the log's entries that say how good one was."""


@dataclass(frozen=True)
class Group:
    """The samples of one task, each with its training row."""

    task: str
    known: bool
    """Whether the right answer may be looked at."""
    episodes: tuple[Episode, ...]
    rows: tuple[Row, ...]

    @property
    def mixed(self) -> bool:
        """Some right, some wrong: only such a group ranks anything."""
        return len({one.success for one in self.episodes}) == 2


@part
class RewardModelLoop:
    """Fit the reward model, choose by it, fine-tune on what was chosen."""

    labelled: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the tasks whose answers are known; the others are voted on."""
    top: Annotated[int, Field(ge=1)] = 2
    """Samples kept per task."""
    ranked: bool = True
    """Without, any right sample is as good as another, and votes count alike."""
    judge: dict[str, Json] = Field(default_factory=dict)
    """Settings of the reward model's training."""
    settings: dict[str, Json] = Field(default_factory=dict)
    """Settings of the policy's."""
    at_least: int = 4

    async def propose(self, bench: Bench) -> Proposal:
        """A bundle with a new adapter, or the reason why there is none."""
        if bench.base_model is None or bench.trainer is None:
            return _skip("the model is behind an API; only a local model's weights can be trained")
        champion = bench.bundle(bench.champion)
        groups = self.groups(bench, system=bench.instruction(champion).text)
        scores, directory = await self.scores(bench, groups)
        chosen = [row for group in groups for row in self.choose(group, scores)]
        counts = monitor(groups, scores)
        body: dict[str, Json] = {**counts, "chosen": len(chosen), "directory": directory}
        bench.archive.add_event(EVENT, bench.run, bench.workflow, body)
        if len(chosen) < self.at_least:
            return _skip(f"{len(chosen)} usable samples; at least {self.at_least} are needed")
        spec: dict[str, Json] = {"run": bench.run, "top": self.top, "labelled": self.labelled}
        policy = await RejectionSampling(settings=self.settings).train(
            bench, champion, rows=freeze(chosen, spec, bench.home / "datasets")
        )
        bundle = replace(champion, policies={**champion.policies, "agent": policy})
        return Proposal(
            lane="policy", state="proposed", bundle=bundle, candidate=policy,
            reason=f"trained on {len(chosen)} samples of {len(groups)} tasks",
        )  # fmt: skip

    def groups(self, bench: Bench, *, system: str) -> list[Group]:
        """This cycle's samples by task, without those that repeat a held-out task."""
        episodes = bench.archive.episodes(Query(run=bench.run, purpose="collect"))
        heldout = held_out(bench)
        guard_held_out(episodes, heldout)
        found: dict[str, list[Episode]] = {}
        for one in trainable(episodes):
            if one.answer and one.failure is None and one.score is not None:
                found.setdefault(one.task.id, []).append(one)
        prompts = [group[0].task.prompt for group in found.values()]
        repeated = Decontaminate().repeated(prompts, [task.prompt for task in heldout])
        groups, redact = list[Group](), Redactor.from_environment()
        for (task, members), repeats in zip(found.items(), repeated, strict=True):
            pairs = [(one, sft_rows([one], system=system, redact=redact)) for one in members]
            usable = [(one, rows[-1]) for one, rows in pairs if rows]
            if usable and repeats is None:
                known = fraction("label", task) < self.labelled
                groups.append(
                    Group(task, known, tuple(e for e, _ in usable), tuple(r for _, r in usable))
                )
        return groups

    async def scores(self, bench: Bench, groups: Sequence[Group]) -> tuple[dict[str, float], str]:
        """The reward model's score of every sample, by episode (0 for all where there is nothing to
        rank by), and where it lies in the home. A scripted model has no weights, so a linear scorer
        stands in for its head."""
        everything = [one for group in groups for one in group.episodes]
        lists = [group for group in groups if group.known and group.mixed]
        if not self.ranked or not lists:
            return dict.fromkeys((one.id for one in everything), 0.0), ""
        assert bench.base_model is not None
        directory = ""
        if (bench.base_model / "config.json").is_file():
            model = await self.tuned(bench, lists)
            async with RewardModel(bench.base_model, model) as judge:
                given = await judge.score([row for group in groups for row in group.rows])
            directory = str(model.relative_to(bench.home))
        else:
            given = self.linear(bench, lists, everything)
        scores = zip((one.id for one in everything), given, strict=True)
        return dict(scores), directory

    async def tuned(self, bench: Bench, lists: Sequence[Group]) -> Path:
        """A scalar head and a low-rank adapter, trained in a process of its own; its directory."""
        assert bench.trainer is not None and bench.base_model is not None
        labels = [
            replace(row, label=one.success, group=group.task)
            for group in lists
            for one, row in zip(group.episodes, group.rows, strict=True)
        ]
        dataset = freeze(labels, {"run": bench.run, "for": METHOD}, bench.home / "datasets")
        name = content_id("job", bench.archive.put(dataset), METHOD, self.judge)
        job = TrainingJob(
            method=METHOD, base=str(bench.base_model),
            dataset=str(rows_path(bench.home / "datasets", dataset)),
            out=str(bench.home / "training" / name), settings=self.judge, seed=bench.seed,
        )  # fmt: skip
        return Path((await bench.trainer.train(job)).adapter)

    def linear(
        self, bench: Bench, lists: Sequence[Group], everything: Sequence[Episode]
    ) -> list[float]:
        """The same loss on a linear map of embeddings."""

        def features(episodes: Sequence[Episode]) -> Vectors:
            texts = [said(one) for one in episodes]
            return np.asarray(bench.embedder.embed(texts), dtype=np.float64)

        ranked = [one for group in lists for one in group.episodes]
        good = [one.success for one in ranked]
        scorer = pairwise(features(ranked), good, [one.task.id for one in ranked])
        return scorer.scores(features(everything))

    def choose(self, group: Group, scores: dict[str, float]) -> list[Row]:
        """Rows of the best samples among those taken to be right; what was said twice is one."""
        taken = right_ones(group, scores)
        order = sorted(range(len(group.rows)), key=lambda at: -scores[group.episodes[at].id])
        best = [group.rows[at] for at in order if group.episodes[at].id in taken]
        return list({row.segments: row for row in reversed(best)}.values())[::-1][: self.top]


def monitor(groups: Sequence[Group], scores: dict[str, float]) -> dict[str, Json]:
    """How often the reward model orders a right and a wrong sample rightly, and how often the vote
    finds the answer, both on tasks whose answers neither was shown."""
    apart = [group for group in groups if not group.known]
    orders = [order for group in apart for order in ordered(group, scores)]
    voted = [
        any(one.success for one in group.episodes if one.id in right_ones(group, scores))
        for group in apart
    ]
    return {
        "tasks": len(groups), "lists": sum(one.known and one.mixed for one in groups),
        "pairs": len(orders), "pairs_right": sum(orders),
        "votes": len(voted), "votes_right": sum(voted),
    }  # fmt: skip


def right_ones(group: Group, scores: dict[str, float]) -> set[str]:
    """Episodes taken to be right: by the grader where the answer is known, else by the vote."""
    if group.known:
        return {one.id for one in group.episodes if one.success}
    answers = [normalised(one.answer or "") for one in group.episodes]
    weights = [sigmoid(scores[one.id]) for one in group.episodes]
    voted = weighted_majority(answers, weights)
    return {one.id for one, answer in zip(group.episodes, answers, strict=True) if answer == voted}


def ordered(group: Group, scores: dict[str, float]) -> list[bool]:
    """Per pair of a right and a wrong sample, whether the right one has the higher score."""
    right = [scores[one.id] for one in group.episodes if one.success]
    wrong = [scores[one.id] for one in group.episodes if not one.success]
    return [good > bad for good in right for bad in wrong]


def said(episode: Episode) -> str:
    """A sample as one text."""
    nodes = (node for one in episode.trajectories for node in one.nodes)
    return "\n".join(node.message.content for node in nodes if node.message.role != "system")


def replies(request: Request) -> str:
    """The scripted model: multiplies with the tool, and adds instead now and then until trained."""
    own = [one for one in request.messages if one.name != "example" and one.role != "system"]
    if own[-1].content.startswith("Output:\n"):
        return f"Answer: {own[-1].content.removeprefix('Output:').strip()}"
    numbers = re.findall(r"\d+", own[0].content)
    seed = request.sampling.seed if request.sampling.temperature else 0
    careless = zlib.crc32(f"{seed}/{own[0].content}".encode()) % 5 < 3
    sign = "+" if careless and not request.policy else "*"
    return f"```python\nprint({f' {sign} '.join(numbers)})\n```"


def _skip(reason: str) -> Proposal:
    return Proposal(lane="policy", state="skipped", reason=reason)
