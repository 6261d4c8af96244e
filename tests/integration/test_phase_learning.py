"""The whole loop on SmolLM2: rollouts through a graph, on each engine; online rounds and an offline
phase; every adapter under a new name, every row with the version that sampled it, ratios from 1."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from local_server import smollm2, vllm_python

pytest.importorskip("torch")
pytest.importorskip("trl")

from safetensors.torch import load_file

from agentloop.datasets.manifest import load_rows, rows_path
from agentloop.lanes.bench import Bench, Order
from agentloop.lanes.online import Online, Round, rounds_of
from agentloop.lanes.phase import Phase
from agentloop.records import Dataset, Episode, Policy, Proposal, Row
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.training.session import STATE
from agentloop.workflows.assemble import Options, assemble
from agentloop.workflows.load import load
from agentloop.workspace import Workspace

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

YAML = """\
title: Short answers
tasks: {use: agentloop.tasks.files:Jsonl, path: ./tasks.jsonl}
graph: react
instruction: Answer in a few words.
limits: {turns: 1, tokens: 32, seconds: 300}
decoding: {max_tokens: 20}
reward: {use: agentloop.rewards.function:Function, grade: ./grader.py:grade}
collect: {use: agentloop.lanes.sample:Sample, tasks: 3, samples: 4, temperature: 0.9}
lanes:
  policy:
    use: agentloop.lanes.phase:Phase
    select: {mixed_groups: true}
    credit: {use: group, baseline: leave_one_out}
    rows: rl
    settings: {precision: float32, learning_rate: 1.0e-3, r: 4, alpha: 8}
"""
GRADER = '''\
def grade(answer, task):
    """The fewer letters, the better: samples of one task nearly always differ."""
    return 1 / (1 + len(answer))
'''
ONLINE = Online(
    rounds=2, tasks=3, samples=4, temperature=0.9,
    credit="group", settings={"precision": "float32", "learning_rate": 1e-3, "r": 4, "alpha": 8},
)  # fmt: skip


@pytest.fixture(params=["embedded", "vllm"])
def model(request: pytest.FixtureRequest) -> Iterator[str]:
    smollm2()
    if request.param == "vllm":
        vllm_python()
    yield request.param


def workspace(folder: Path) -> Path:
    folder.mkdir()
    (folder / "workflow.yaml").write_text(YAML)
    (folder / "grader.py").write_text(GRADER)
    prompts = ("Name a colour.", "What do cats eat?", "Where does the sun rise?", "Name a tree.")
    (folder / "tasks.jsonl").write_text(
        "".join(
            json.dumps({"id": f"{split}-{at}", "prompt": prompt + more, "split": split}) + "\n"
            for split, more in (("train", ""), ("heldout", " Please."))
            for at, prompt in enumerate(prompts)
        )
    )
    return folder


def test_online_rounds_and_a_replay_phase(model: str, tmp_path: Path) -> None:
    folder, home = workspace(tmp_path / "short"), tmp_path / "home"
    home.mkdir()

    async def main() -> None:
        space = Workspace((tmp_path, *Workspace.find().roots))
        with Archive(home) as archive:
            options = Options(run="run-1", seed=0, workspace=space, home=home, model=model)
            async with assemble(load(str(folder), space), archive, options) as kit:
                await kit.collector.collect(kit.bench)
                phase = kit.lanes["policy"]
                assert isinstance(phase, Phase)
                await look_at_the_phase(kit.bench, phase)
                online = await ONLINE.propose(kit.bench)
                look_at_the_rounds(kit.bench, online)
                await served(kit.bench, online)
                assert await ONLINE.propose(kit.bench) == online  # nothing is made twice

    asyncio.run(main())


async def look_at_the_phase(bench: Bench, phase: Phase) -> None:
    proposal = await phase.propose(bench)
    assert proposal.state == "proposed" and proposal.candidate is not None, proposal.reason
    policy = bench.archive.get(proposal.candidate, Policy)
    print(f"\nphase: {shown(policy.metrics)}; {proposal.reason}")
    near_one(policy.metrics)
    dataset = bench.archive.get(str(policy.dataset), Dataset)
    found = rows(bench, dataset)
    assert {row.policy for row in found} == {None}
    again = replace(phase, dataset=str(policy.dataset))
    assert (await again.propose(bench)).candidate == proposal.candidate  # from the manifest
    episodes = {one.id: one for one in bench.archive.episodes(Query(purpose="collect"))}
    assert {row.episode for row in found} <= set(episodes)
    for row in found:  # the exact tokens, prompt included
        [trajectory] = episodes[row.episode].trajectories
        assert sum(row.segments, ()) == sum((node.token_ids for node in trajectory.nodes), ())


def look_at_the_rounds(bench: Bench, proposal: Proposal) -> None:
    assert proposal.state == "proposed", proposal.reason
    rounds = rounds_of(bench.archive, bench.run)
    assert [one.number for one in rounds] == [1, 2]
    first, second = rounds
    assert first.sampled_by is None and first.policy == second.sampled_by
    assert len({first.policy, second.policy, None}) == 3  # a new name for each update
    assert proposal.candidate == second.policy
    assert bench.archive.get(str(second.policy), Policy).parents == (first.policy,)
    for one in rounds:
        print(f"round {one.number}: {shown(one.figures)}")
        near_one(one.figures)
        found = rows(bench, bench.archive.get(one.dataset, Dataset))
        assert found and {row.policy for row in found} == {one.sampled_by}
        assert steps_taken(one) == one.number
    made = bench.archive.episodes(Query(purpose="train"))
    assert len(made) == 24
    assert [versions(one) for one in made] == [{None}] * 12 + [{first.policy}] * 12


async def served(bench: Bench, proposal: Proposal) -> None:
    assert proposal.bundle is not None
    tasks = bench.tasks.draw(2, split="heldout", seed=0)
    order = Order(purpose="eval", subject="heldout")
    episodes = await bench.attempt(tasks, proposal.bundle, order)
    assert [versions(one) for one in episodes] == [{proposal.candidate}] * 2


def near_one(figures: dict[str, float]) -> None:
    """Before anything is learned the trainer agrees with the engine on every token."""
    assert figures["ratio_at_start"] == pytest.approx(1, abs=0.01)
    assert figures["abs_log_ratio_at_start"] < 0.01


def rows(bench: Bench, dataset: Dataset) -> list[Row]:
    return load_rows(rows_path(bench.home / "datasets", dataset))


def versions(episode: Episode) -> set[str | None]:
    return {n.policy for each in episode.trajectories for n in each.nodes if n.sampled}


def steps_taken(one: Round) -> int:
    """By the optimizer: its state goes on from round to round."""
    state = load_file(Path(one.optimizer) / STATE)
    [steps] = {int(value) for name, value in state.items() if name.endswith("/step")}
    return steps


def shown(figures: dict[str, Any]) -> str:
    names = ("ratio_at_start", "abs_log_ratio_at_start", "reward", "rows", "train_seconds")
    return ", ".join(f"{name} {figures[name]:.6g}" for name in names if name in figures)
