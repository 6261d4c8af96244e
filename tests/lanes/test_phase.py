"""A phase: the log in, a policy or a reason out, and the same rows again from what was frozen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from agentloop.datasets.credit import GroupCredit
from agentloop.datasets.makers import PreferenceRows, RLRows
from agentloop.datasets.manifest import load_rows, rows_path
from agentloop.errors import TrainingError, UsageError
from agentloop.lanes.bench import Bench
from agentloop.lanes.online import with_policy
from agentloop.lanes.phase import Phase
from agentloop.lanes.sample import Sample
from agentloop.records import (
    Dataset,
    Policy,
    Proposal,
    Row,
    Score,
    TrainingJob,
    TrainingResult,
)  # fmt: skip
from agentloop.training.dry import DryTrainer

RL: dict[str, Any] = {"select": {"mixed_groups": True}, "credit": "group", "rows": "rl"}
SAMPLE = Sample(tasks=8, samples=4)


class Seen(DryTrainer):
    """Notes the jobs."""

    def __init__(self) -> None:
        self.jobs: list[TrainingJob] = []

    async def train(self, job: TrainingJob) -> TrainingResult:
        self.jobs.append(job)
        return await super().train(job)


Opened = Callable[..., Any]


def rows_of(bench: Bench, proposal: Proposal) -> list[Row]:
    assert proposal.candidate is not None, proposal.reason
    policy = bench.archive.get(proposal.candidate, Policy)
    dataset = bench.archive.get(str(policy.dataset), Dataset)
    return load_rows(rows_path(bench.home / "datasets", dataset))


@pytest.mark.parametrize(
    ("fields", "method", "holds"),
    [
        ({"select": {"success": True}}, "sft:train", lambda row: row.prompt and not row.advantages),
        (RL, "replay:train", lambda row: not row.prompt and any(row.advantages) and row.logprobs),
        ({"rows": {"use": "preference", "mode": "one"}}, "preference:dpo", lambda row: row.pair),
        ({"rows": "unpaired"}, "preference:kto", lambda row: row.label is not None),
        (
            {"rows": "listwise", "role": "judge"}, "reward_model:train",
            lambda row: row.group and row.label is not None,
        ),
    ],
)  # fmt: skip
def test_each_kind_of_rows_has_its_method(
    opened: Opened, fields: dict[str, Any], method: str, holds: Callable[[Row], object]
) -> None:
    async def main() -> None:
        async with opened() as kit:
            bench, trainer = kit.bench, Seen()
            bench.trainer = trainer
            counts = await SAMPLE.collect(bench)
            assert 0 < counts["solved"] < counts["rollouts"] == 32
            proposal = await Phase(**fields).propose(bench)
            assert proposal.state == "proposed", proposal.reason
            assert proposal.bundle is not None
            role = fields.get("role", "agent")
            assert proposal.bundle.policies == {role: proposal.candidate}
            [job] = trainer.jobs
            assert job.method == f"agentloop.training.{method}" and job.adapter is None
            found = rows_of(bench, proposal)
            assert found and all(holds(row) for row in found)
            episodes = {one.id: one for one in bench.archive.episodes()}
            for row in found:
                [trajectory] = episodes[row.episode].trajectories
                assert {node.policy for node in trajectory.nodes} == {row.policy}
                if not row.prompt:  # the exact tokens, up to the last that was sampled
                    ids = sum((node.token_ids for node in trajectory.nodes), ())
                    assert sum(row.segments, ()) == ids
                    assert row.sampling is not None and row.sampling.temperature == 1.0

    asyncio.run(main())


def test_a_phase_that_was_begun_goes_on_with_the_rows_it_froze(opened: Opened) -> None:
    lane = Phase(**RL, log="workflow")

    async def main() -> None:
        async with opened() as kit:
            await SAMPLE.collect(kit.bench)
            kit.bench.trainer = Killed()
            with pytest.raises(TrainingError):
                await lane.propose(kit.bench)
            [(first, _, _)] = kit.bench.archive.artifacts(Dataset)
            late = [(one.id, Score(value=0.5, success=False, source="late"))
                    for one in kit.bench.archive.episodes()]  # fmt: skip
            await kit.bench.archive.add_scores(late, "late")
        async with opened("run-2") as kit:  # another run fills the same log
            await Sample(tasks=2, samples=4).collect(kit.bench)
        async with opened() as kit:
            proposal = await lane.propose(kit.bench)
            assert [name for name, _, _ in kit.bench.archive.artifacts(Dataset)] == [first]
            policy = kit.bench.archive.get(str(proposal.candidate), Policy)
            assert policy.dataset == first
            spec = kit.bench.archive.get(first, Dataset).spec
            assert spec["training"] == {
                "method": "agentloop.training.replay:train", "settings": {}, "role": "agent",
                "parent": None, "base": "scripted", "seed": 0,
            }  # fmt: skip
            once = await Phase(**RL, log="workflow", dataset=first).propose(kit.bench)
            assert (once.candidate, once.state) == (proposal.candidate, "proposed")
            with pytest.raises(UsageError, match="another `credit`"):
                other: dict[str, Any] = {**RL, "credit": {"use": "group", "baseline": "mean_std"}}
                await Phase(**other, dataset=first).propose(kit.bench)

    asyncio.run(main())


def test_a_finished_job_is_of_its_base_model_and_a_dataset_of_its_settings(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as kit:
            bench, trainer = kit.bench, Seen()
            bench.trainer = trainer
            await SAMPLE.collect(bench)
            for base in ("one/model", "two/model"):
                await Phase(**RL).propose(replace(bench, base_model=Path(base)))
            warm = Phase(**RL, settings={"learning_rate": 0.5})
            await warm.propose(bench)
            assert len({job.out for job in trainer.jobs}) == len(trainer.jobs) == 3
            made = [one.spec["training"] for _, one, _ in bench.archive.artifacts(Dataset)]
            assert [one["settings"] for one in made] == [{}, {"learning_rate": 0.5}]

    asyncio.run(main())


class Killed:
    """A trainer that dies."""

    async def train(self, job: TrainingJob) -> TrainingResult:
        raise TrainingError("the trainer was killed")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"select": {"min_reward": 2.0}}, r"0 rows of 32 episodes; at least 4 .*32 reward"),
        (
            {**RL, "credit": {"use": "critics", "weights": {"": 0.0}}},
            "every sample was worth as much as its group",
        ),
        ({"rows": "preference", "select": {"success": True}}, "0 rows of 32 episodes"),
    ],
)
def test_a_phase_with_nothing_to_learn_says_why(
    opened: Opened, fields: dict[str, Any], says: str
) -> None:
    async def main() -> Proposal:
        async with opened() as kit:
            await SAMPLE.collect(kit.bench)
            return await Phase(**fields).propose(kit.bench)

    proposal = asyncio.run(main())
    assert proposal.state == "skipped"
    import re

    assert re.search(says, proposal.reason), proposal.reason


def test_selection_by_meaning_is_frozen_with_its_scores(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as kit:
            bench = kit.bench
            await SAMPLE.collect(bench)
            text = bench.archive.episodes()[0].task.prompt
            near = {"near": {"text": text, "k": 2, "of": "tasks"}}
            proposal = await Phase(**{**RL, "select": near}).propose(bench)
            episodes = {row.episode for row in rows_of(bench, proposal)}
            tasks = {one.task.id for one in bench.archive.episodes() if one.id in episodes}
            assert len(tasks) == 2
            policy = bench.archive.get(str(proposal.candidate), Policy)
            kept = (bench.home / "datasets" / str(policy.dataset) / "chosen.jsonl").read_text()
            lines = map(json.loads, kept.splitlines())
            nearness = [one["nearness"] for one in lines if one.get("chosen", True)]
            assert len(nearness) == 8 and max(nearness) == pytest.approx(1.0)

    asyncio.run(main())


def test_rollouts_that_gamed_their_reward_stop_the_phase(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as kit:
            bench = kit.bench
            await SAMPLE.collect(bench)
            flagged = [
                (one.id, Score(value=1.0, success=True, source="s", parts={"hack": at % 2}))
                for at, one in enumerate(bench.archive.episodes())
            ]
            await bench.archive.add_scores(flagged, "screen")
            select = {"hacks": {"hack": 0.5}}
            with pytest.raises(TrainingError, match=r"gamed their reward.*0\.5"):
                await Phase(select=select).propose(bench)
            assert not bench.archive.artifacts(Dataset)
            # by a version that is not the champion any more, and in trials nobody learns from
            other = with_policy(bench.bundle(bench.champion), await trained(bench))
            served = replace(bench, champion=bench.archive.put(other))
            later = await Phase(select=select, log="workflow").propose(served)
            assert later.state == "proposed", later.reason
            trials = {**select, "purposes": ["train"]}
            assert (await Phase(select=trials, log="workflow").propose(bench)).state == "skipped"
            loose: Any = {"guards": {"max_hack_rate": 0.6}}
            lane = Phase(rows="rl", credit="percentile", select=select, settings=loose, at_least=1)
            assert (await lane.propose(bench)).state == "skipped"  # all that is left is right

    asyncio.run(main())


async def trained(bench: Bench) -> str:
    proposal = await Phase().propose(bench)
    assert proposal.candidate is not None
    return proposal.candidate


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"settings": {"learning_rat": 1}}, "did you mean `learning_rate`"),
        ({"rows": "listwise"}, "cannot serve as the agent; give it another `role`"),
        ({"rows": "rl", "settings": {"clip": {"lo": 1}}}, "clip.lo"),
        ({"rows": "rl"}, "name a `credit`"),
        ({"rows": "rows"}, "unknown part `rows`"),
        ({"credit": {"use": "group", "baselin": "mean"}}, "baselin"),
        ({"credit": "agentloop.datasets.makers:RLRows"}, "no Credit"),
        ({"rows": {"margin": 1}}, "name the part"),
        (
            {"settings": {"weights": "full"}, "rows": "rl", "credit": "group"},
            "leave out `weights: full`",
        ),
    ],
)
def test_mistakes_are_told_when_the_workflow_is_read(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Phase(**fields)


def test_parts_are_named_shortly_or_by_reference() -> None:
    lane = Phase(credit={"use": "group", "baseline": "leave_one_out"}, rows="rl")
    assert lane.credit == GroupCredit(baseline="leave_one_out") and lane.rows == RLRows()
    by_reference = {"use": "agentloop.datasets.makers:PreferenceRows", "margin": 0.5}
    assert Phase(rows=by_reference).rows == PreferenceRows(margin=0.5)
