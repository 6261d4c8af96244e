"""A trainer that is killed, runs out of memory or is fed a damaged dataset: one typed error with
the cause, nothing left behind, and the next job and cycle start as if nothing had been."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_workflow

from agentloop.cycle import cycle
from agentloop.datasets.manifest import freeze, rows_path
from agentloop.errors import TrainingError
from agentloop.ports import Trainer
from agentloop.records import Message, Row, TrainingJob, TrainingResult
from agentloop.store.archive import Archive
from agentloop.training.job import ProcessTrainer
from agentloop.workflows.assemble import Kit, Options, assemble, plan_hash
from agentloop.workflows.load import load
from agentloop.workspace import Workspace

METHODS = '''
import os, resource
from agentloop.training import dry

def good(job):
    return dry.train(job)

def killed(job):
    os.kill(os.getpid(), 9)

def killed_while_writing(job):
    from agentloop.training.artifact import publish
    def write(directory):
        (directory / "adapter_config.json").write_text("{}")
        os.kill(os.getpid(), 9)
    publish(job, write, metrics={}, seconds=0.0)

def limited(job):
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    bytearray(4 << 30)

def too_much(job):
    raise MemoryError

def accelerator(job):
    class OutOfMemoryError(RuntimeError):
        """As torch.OutOfMemoryError, torch.cuda.OutOfMemoryError."""
    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\\nGPU 0 has")

def allocator(job):
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:132] err == 0. DefaultCPUAllocator: can't "
                       "allocate memory: you tried to allocate 4000000000 bytes.")
'''


def rows(n: int) -> list[Row]:
    return [
        Row(
            episode=f"ep-{at}", prompt=(Message(role="user", content="hi"),),
            segments=((1, 2, at),), sampled=(True,),
        )
        for at in range(n)
    ]  # fmt: skip


def job(tmp_path: Path, method: str) -> TrainingJob:
    (tmp_path / "methods.py").write_text(METHODS)
    return TrainingJob(
        method=f"{tmp_path}/methods.py:{method}",
        base=str(tmp_path),
        dataset=str(rows_path(tmp_path, freeze(rows(3), {}, tmp_path))),
        out=str(tmp_path / "out"),
    )


def train(given: TrainingJob) -> TrainingResult:
    return asyncio.run(ProcessTrainer(deadline=60).train(given))


NO_MEMORY = "memory ran out; lower `tokens_at_once`"


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("killed", r"was killed \(out of memory\?\)"),
        ("killed_while_writing", r"was killed \(out of memory\?\)"),
        ("limited", NO_MEMORY),
        ("too_much", NO_MEMORY),
        ("accelerator", NO_MEMORY + r".*\(CUDA out of memory\. Tried to allocate 20\.00 GiB\.\)"),
        ("allocator", NO_MEMORY),
    ],
)
def test_the_cause_is_told_and_the_next_job_starts(tmp_path: Path, method: str, says: str) -> None:
    given = job(tmp_path, method)
    before = files(Path(given.dataset).parent)
    with pytest.raises(TrainingError, match=says):
        train(given)
    assert not Path(given.out).exists()
    assert files(Path(given.dataset).parent) == before
    assert "Traceback" in Path(f"{given.out}.job/log.txt").read_text() or "killed" in method
    assert Path(train(replace(given, method=job(tmp_path, "good").method)).adapter).is_dir()


def test_what_torch_raises_is_known() -> None:
    torch = pytest.importorskip("torch")
    from agentloop.training.worker import out_of_memory

    assert out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory."))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert out_of_memory(refused.value)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut_a_line(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def wrong_manifest(path: Path) -> None:
    beside = path.parent / "manifest.json"
    manifest = json.loads(beside.read_text())
    manifest["files"][path.name]["sha256"] = "0" * 64
    beside.write_text(json.dumps(manifest))


def no_manifest(path: Path) -> None:
    (path.parent / "manifest.json").write_text("[]")


def cut_with_its_manifest(path: Path) -> None:
    """Consistent, and still no rows: as a broken writer would leave it."""
    from agentloop.files import write_manifest

    cut_a_line(path)
    (path.parent / "manifest.json").unlink()
    write_manifest(path.parent, {})


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (flip_a_byte, "was changed after it was written"),
    (cut_a_line, "was changed after it was written"),
    (wrong_manifest, "was changed after it was written"),
    (no_manifest, "is missing or not a manifest"),
    (cut_with_its_manifest, "line 3: stored data is not a Row"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGE)
def test_a_damaged_dataset_is_named(
    tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    given = job(tmp_path, "good")
    damage(Path(given.dataset))
    with pytest.raises(TrainingError, match=says) as failed:
        train(given)
    assert "rows.jsonl" in str(failed.value) or "manifest.json" in str(failed.value)
    assert not Path(given.out).exists()


# --- the same inside a cycle ---------------------------------------------------------------------


@dataclass
class Damaging:
    """A `Trainer` whose dataset is damaged between freezing and reading."""

    damage: Callable[[Path], None]
    method: str

    async def train(self, given: TrainingJob) -> TrainingResult:
        self.damage(Path(given.dataset))
        return await Method(self.method).train(given)


@dataclass
class Method:
    """A `Trainer` that runs another method."""

    method: str

    async def train(self, given: TrainingJob) -> TrainingResult:
        return await ProcessTrainer(deadline=60).train(replace(given, method=self.method))


def run_cycle(root: Path, number: int, trainer: Trainer | None) -> tuple[Any, str]:
    """One cycle with the scripted model; its report and the champion after it."""
    folder = root / "workflows" / "tiny"
    loaded = load(str(folder), Workspace.find(root))
    (root / "home").mkdir(exist_ok=True)
    archive = Archive(root / "home")

    async def inside(kit: Kit) -> Any:
        if trainer is not None:
            kit.bench.trainer = trainer
        return await cycle(kit)

    async def whole() -> Any:
        plan = plan_hash(loaded, "scripted", None, 0)
        options = Options(
            run=f"cycle-{number}", seed=0, workspace=Workspace.find(root), home=root / "home",
            model="scripted", plan=plan,
        )  # fmt: skip
        async with assemble(loaded, archive, options) as kit:
            return await inside(kit)

    try:
        report = asyncio.run(whole())
        assert archive.verify()["ok"]
        champion = archive.alias("tiny/champion")
        assert champion is not None
        return report, champion.bundle
    finally:
        archive.close()


_BEFORE, _, _LANES = tiny_workflow.YAML.partition("lanes:\n")
POLICY_ALONE = f"{_BEFORE}lanes:\n{_LANES[_LANES.index('  policy:') :]}"


@pytest.mark.parametrize("fault", ["killed", "limited", "flip_a_byte", "cut_with_its_manifest"])
def test_a_cycle_says_why_and_the_next_one_starts(tmp_path: Path, fault: str) -> None:
    tiny_workflow.make(tmp_path, yaml=POLICY_ALONE)
    (tmp_path / "methods.py").write_text(METHODS)
    damages = {damage.__name__: damage for damage, _ in DAMAGE}
    methods = f"{tmp_path}/methods.py"
    trainer: Trainer = Method(f"{methods}:{fault}")
    if fault in damages:
        trainer = Damaging(damages[fault], f"{methods}:good")
    report, champion = run_cycle(tmp_path, 1, trainer)
    lane = report.lanes["policy"]
    assert report.state == lane.state == "failed" and report.bundle == champion
    cause = {"killed": "was killed", "limited": "memory ran out", "flip_a_byte": "was changed",
             "cut_with_its_manifest": "is not a Row"}[fault]  # fmt: skip
    assert cause in lane.reason

    good, promoted = run_cycle(tmp_path, 2, None)
    assert good.state == "promoted" and promoted != champion


def files(directory: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in directory.iterdir()}
