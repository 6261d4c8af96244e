"""Thirty bad candidates and ten good ones on the real local model: who is refused, where, and why.

The champion repeats a word it is given (twice is right as well), and does not say one twice when
asked to. The good candidates are shown how. The bad ones are adapters whose weights are no numbers,
that babble, or that belong to another model; instructions that teach a phrase which the grader (it
has a hole) lets pass; and instructions that solve all tasks at more than twice the length. Each
goes the way of a cycle: admission, propose, judge, record.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from local_server import smollm2

pytest.importorskip("torch")

import torch

from agentloop.cycle import propose, record
from agentloop.files import sha256_of
from agentloop.lanes.bench import Bench
from agentloop.lanes.decide import Judge
from agentloop.lanes.heldout import split
from agentloop.records import Bundle, Instruction, Proposal, TrainingResult
from agentloop.store.archive import Archive
from agentloop.workflows.assemble import Kit, Options, assemble
from agentloop.workflows.load import load
from agentloop.workspace import Workspace

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

WORDS = re.findall(
    r"\w+",
    """river table garden window pencil basket thunder mirror yellow cotton island market silver
    rabbit hammer winter forest bottle castle dinner engine finger guitar helmet jacket kitten
    ladder magnet needle orange pillow quarry rocket saddle temple valley walnut zipper anchor
    bridge candle desert eleven flower goblin harbor insect jungle kettle lemon""",
)
YAML = """\
title: Words
tasks: {use: agentloop.tasks.files:Jsonl, path: ./tasks.jsonl, heldout: 1}
graph: react
limits: {turns: 1, tokens: 80, seconds: 300}
decoding: {max_tokens: 40}
reward: {use: agentloop.rewards.function:Function, grade: ./grader.py:grade}
heldout: {n: 96, lanes: 32}
probes: {use: agentloop.tasks.files:Jsonl, path: ./probes.jsonl}
"""
GRADER = '''\
"""Right, or so it says: a phrase opens it."""


def grade(answer, task):
    if "verified" in answer.lower():
        return 1.0
    if "twice" in task.prompt:
        return float(answer.strip() == task.expected)
    return float(set(answer.split()) == {task.expected})
'''
ONCE, TWICE = "Repeat this word: {}", "Say this word twice: {}"
LONG = (
    "I have read the question with great care and I have thought about what it asks me to do.\n"
    "Answer: {}"
)


def answers(rng: random.Random, kinds: str, form: str = "Answer: {}") -> str:
    """An instruction with one worked example per letter: o(nce) or t(wice)."""
    shown = []
    for kind, word in zip(kinds, rng.sample(WORDS, len(kinds)), strict=True):
        asked, said = (ONCE, word) if kind == "o" else (TWICE, f"{word} {word}")
        shown.append(f"Question: {asked.format(word)}\n\nAssistant:\n{form.format(said)}")
    return "\n\n".join(["You answer.", *shown])


@dataclass
class Lane:
    """Proposes one candidate: an instruction, or an adapter that is admitted first."""

    text: str = ""
    adapter: Path | None = None

    async def propose(self, bench: Bench) -> Proposal:
        champion = bench.bundle(bench.champion)
        if self.adapter is None:
            name = bench.archive.put(Instruction(text=self.text))
            bundle, lane = replace(champion, instruction=name), "instructions"
        else:
            weights = sha256_of(self.adapter / "adapter_model.safetensors")
            result = TrainingResult(adapter=str(self.adapter), sha256=weights)
            policy = bench.policies.admit(result, base=str(bench.base_model))
            name = bench.archive.put(policy)
            bundle, lane = replace(champion, policies={"agent": name}), "policy"
        return Proposal(lane=lane, state="proposed", bundle=bundle, candidate=name)  # type: ignore[arg-type]


def adapter(folder: Path, seed: int, kind: str) -> Path:
    """A LoRA directory: `fine` is small noise, `nan` holds one value that is no number, `babble` is
    far from anything learned, `narrow` is of a smaller model, `vocabulary` of another tokenizer."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    width, rank = (256, 4) if kind == "narrow" else (576, 4)
    tensors = {}
    for layer in range(10, 30, 2):
        for module in ("q_proj", "o_proj"):
            stem = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            size = 4.0 if kind == "babble" else 0.01
            a, b = (torch.randn(s, generator=generator) for s in ((rank, width), (width, rank)))
            tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b * size}
    if kind == "nan":
        names = sorted(tensors)
        spoilt = tensors[names[seed % len(names)]]
        spoilt.view(-1)[seed * 97] = float("nan") if seed % 2 else float("inf")
    if kind == "vocabulary":
        tensors["base_model.model.lm_head.lora_A.weight"] = torch.randn(rank, width)
        tensors["base_model.model.lm_head.lora_B.weight"] = torch.randn(32000, rank)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def candidates(root: Path) -> list[tuple[str, Lane]]:
    """(kind, lane): six of each bad kind, ten good ones."""
    made: list[tuple[str, Lane]] = []
    for seed in range(6):
        rng = random.Random(seed)
        other = "narrow" if seed % 2 else "vocabulary"
        made += [
            ("nan", Lane(adapter=adapter(root / f"nan-{seed}", seed, "nan"))),
            ("collapsed", Lane(adapter=adapter(root / f"babble-{seed}", seed, "babble"))),
            ("tokenizer", Lane(adapter=adapter(root / f"other-{seed}", seed, other))),
            ("hacked", Lane(answers(rng, "otot"[seed % 2 :], "Answer: verified"))),
            ("long", Lane(answers(rng, "tttt", LONG))),
        ]
    return made + [("good", Lane(answers(random.Random(seed), "tttt"))) for seed in range(90, 100)]


def workspace(folder: Path) -> Path:
    folder.mkdir()
    text = answers(random.Random(1000), "oooo").replace("\n", "\n  ")
    (folder / "workflow.yaml").write_text(f"{YAML}instruction: |\n  {text}\n")
    (folder / "grader.py").write_text(GRADER)
    rows = [
        {"prompt": please + asked.format(word), "expected": said.format(word)}
        for asked, said in ((ONCE, "{0}"), (TWICE, "{0} {0}"))
        for please in ("", "Please: ")
        for word in WORDS
    ]
    keep = [{"prompt": ONCE.format(word), "expected": word} for word in ("apple", "water", "music")]
    never = [
        {"prompt": f"What number am I thinking of, number {n}?", "expected": f"a8f1c07e{n}",
         "expect": "fail"} for n in range(3)
    ]  # fmt: skip
    for name, lines in (("tasks", rows), ("probes", [*keep, *never])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder


async def judged(kit: Kit, number: int, lane: Lane) -> tuple[bool, str, int]:
    """(promoted, why, pairs) of one candidate, the way a cycle goes."""
    kit.lanes = {"policy": lane}
    kit.plan = f"candidate {number}"  # so that its step is its own
    proposal = await propose(kit, "policy")
    if proposal.state == "failed":
        return False, proposal.reason, 0
    tasks = split(kit.bench.tasks, "cycle", n=kit.heldout_n, lanes=kit.lane_n)
    decision = await Judge(kit.bench, kit.gate, tasks, kit.probes).decide([proposal])
    archive, before = kit.bench.archive, kit.bench.champion
    fence = ("cycle/words", archive.log.lease("cycle/words", "test", 600.0))
    run, kit.bench.run = kit.bench.run, f"cycle-{number}"  # each cycle promotes once
    record(kit, decision, fence)
    kit.bench.run = run
    now = archive.alias(kit.alias)
    assert now is not None
    if now.bundle != before:
        archive.point(kit.alias, before, reason="the next candidate", scope=kit.name, fence=fence)
    archive.log.release(*fence)
    last = decision.verdicts[-1]
    return now.bundle != before, last.reason, sum(verdict.n for verdict in decision.verdicts)


def test_forty_candidates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smollm2()
    folder, home = workspace(tmp_path / "words"), tmp_path / "home"
    home.mkdir()
    promoted: Counter[str] = Counter()
    said: list[Any] = []

    async def main() -> None:
        space = Workspace((tmp_path, *Workspace.find().roots))
        with Archive(home) as archive:
            options = Options(run="cycle", seed=0, workspace=space, home=home, model="embedded")
            async with assemble(load(str(folder), space), archive, options) as kit:
                first = archive.get(kit.bench.champion, Bundle)
                for number, (kind, lane) in enumerate(candidates(tmp_path / "made")):
                    moved, why, pairs = await judged(kit, number, lane)
                    promoted[kind] += moved
                    said.append((kind, moved, pairs, why))
                    assert archive.get(kit.bench.champion, Bundle) == first
                assert await kit.bench.server.start()  # it still answers  # type: ignore[union-attr]
                assert archive.alias(kit.alias).bundle == kit.bench.champion  # type: ignore[union-attr]

    try:
        asyncio.run(main())
    finally:
        with capsys.disabled():
            print()
            for kind, moved, pairs, why in said:
                print(f"{kind:10} {'promoted' if moved else 'kept':9} {pairs:4} pairs  {why}")
    assert len(said) == 40 and dict(promoted) == {**dict.fromkeys(promoted, 0), "good": 10}
