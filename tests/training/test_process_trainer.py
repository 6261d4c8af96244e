"""A trainer process is followed, bounded and ended; what it says becomes one typed error."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from agentloop.datasets.manifest import freeze, rows_path
from agentloop.errors import TrainingError, UsageError
from agentloop.ports import Trainer
from agentloop.records import Message, Row, TrainingJob
from agentloop.training.artifact import finished
from agentloop.training.job import ProcessTrainer

METHODS = """
import os, subprocess, sys, time
from pathlib import Path
from agentloop.errors import TrainingError, UnknownName
from agentloop.training import dry
from agentloop.training.artifact import report

def good(job):
    print("{not a metric")
    for step in (1, 2):
        report(step=step, steps=2, loss=1.0 / step, seconds=0.0)
    with open(job.out + ".count", "a") as file:
        file.write(os.environ["HF_HUB_OFFLINE"])
    return dry.train(job)

def wrong(job):
    raise UnknownName("training setting", "learning_rat", ["learning_rate"])

def failing(job):
    raise TrainingError("the loss became nan")

def crashing(job):
    raise RuntimeError("segmentation of reality")

def killed(job):
    os.kill(os.getpid(), 9)

def lazy(job):
    pass

def endless(job):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(job.out + ".pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)
"""


def job(tmp_path: Path, method: str) -> TrainingJob:
    (tmp_path / "methods.py").write_text(METHODS)
    row = Row(
        episode="ep",
        prompt=(Message(role="user", content="hi"),),
        segments=((1, 2),),
        sampled=(True,),
    )
    return TrainingJob(
        method=f"{tmp_path}/methods.py:{method}",
        base=str(tmp_path),
        dataset=str(rows_path(tmp_path, freeze([row], {}, tmp_path))),
        out=str(tmp_path / "out"),
    )


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_progress_result_and_no_second_run(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int, str]] = []

    def progress(stage: str, done: int, total: int, note: str = "") -> None:
        seen.append((stage, done, total, note))

    trainer = ProcessTrainer(progress=progress)
    assert isinstance(trainer, Trainer)
    result = asyncio.run(trainer.train(job(tmp_path, "good")))
    assert seen == [("train", 1, 2, "loss 1.000"), ("train", 2, 2, "loss 0.500")]
    assert Path(result.adapter, "adapter_model.safetensors").is_file()
    assert "not a metric" in (tmp_path / "out.job" / "log.txt").read_text()
    assert asyncio.run(trainer.train(job(tmp_path, "good"))) == result
    assert (tmp_path / "out.count").read_text() == "1"


@pytest.mark.parametrize(
    ("method", "error", "says"),
    [
        ("wrong", UsageError, "did you mean `learning_rate`"),
        ("failing", TrainingError, "exit code 1: the loss became nan"),
        ("crashing", TrainingError, "RuntimeError: segmentation of reality"),
        ("killed", TrainingError, "out of memory"),
        ("lazy", TrainingError, "left no result"),
        ("goood", UsageError, "did you mean `good`"),
    ],
)
def test_each_end_is_one_typed_error(
    tmp_path: Path, method: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        asyncio.run(ProcessTrainer().train(job(tmp_path, method)))
    assert not (tmp_path / "out").exists()


def test_the_deadline_ends_the_whole_process_group(tmp_path: Path) -> None:
    endless = job(tmp_path, "endless")

    async def cancelled() -> None:
        task = asyncio.create_task(ProcessTrainer().train(endless))
        while not (tmp_path / "out.pids").exists():
            await asyncio.sleep(0.05)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    pids = [int(pid) for pid in (tmp_path / "out.pids").read_text().split()]
    deadline = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))
    with pytest.raises(TrainingError, match=r"deadline of 0\.3 s"):
        asyncio.run(ProcessTrainer(deadline=0.3).train(endless))
    assert finished(endless) is None


def test_the_worker_dies_with_its_parent(tmp_path: Path) -> None:
    endless = job(tmp_path, "endless")
    child = os.fork()
    if child == 0:  # a run that is killed while it trains
        try:
            asyncio.run(ProcessTrainer().train(endless))
        finally:
            os._exit(0)
    pids_file = tmp_path / "out.pids"
    deadline = time.monotonic() + 20
    while not (pids_file.exists() and pids_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    worker, grandchild = (int(pid) for pid in pids_file.read_text().split())
    os.kill(child, 9)
    os.waitpid(child, 0)
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(grandchild, 9)
    assert not alive(worker)
