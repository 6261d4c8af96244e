"""A trainer that dies, at each phase of its work and of each cause: the slot says why, the data and
the champion stay, nothing is left behind, and the next slot's cycle starts."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import stopping
import tiny_workflow
from schedule_fixtures import SetClock

from agentloop.cli.schedule import SessionCycles
from agentloop.cli.session import Session
from agentloop.ports import Trainer
from agentloop.records import TrainingJob, TrainingResult
from agentloop.schedule import Calendar, Every, Scheduler
from agentloop.schedule.slots import history
from agentloop.store.archive import Archive
from agentloop.training.job import ProcessTrainer
from agentloop.workflows import assemble

PHASES = ("start", "read", "write", "published")
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
METHODS = """
import os, resource, signal
from pathlib import Path
from agentloop.training import dry
from agentloop.training.artifact import publish
from agentloop.trajectories.rows_file import read_rows

def die(job, phase, name):
    def here(at):
        if at == phase:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup has it ignored
            os.kill(os.getpid(), getattr(signal, name))
    here("start")
    read_rows(Path(job.dataset))
    here("read")
    def write(directory):
        (directory / "adapter_config.json").write_text("{}")
        here("write")
        dry._write(directory, job.base)
    publish(job, write, metrics={}, seconds=0.0)
    here("published")

def memory(job):
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    bytearray(4 << 30)
""" + "".join(
    f"\ndef {phase}_{name}(job):\n    die(job, {phase!r}, {name!r})\n"
    for phase, name in itertools.product(PHASES, SIGNALS)
)
BEFORE, _, LANES = tiny_workflow.YAML.partition("lanes:\n")
POLICY_ALONE = f"{BEFORE}lanes:\n{LANES[LANES.index('  policy:') :]}"
CASES = [*(f"{phase}_{name}" for phase, name in itertools.product(PHASES, SIGNALS)), "memory"]


@dataclass
class Method:
    """A trainer process that runs another method."""

    method: str

    async def train(self, given: TrainingJob) -> TrainingResult:
        return await ProcessTrainer(deadline=60).train(replace(given, method=self.method))


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    tiny_workflow.make(tmp_path, yaml=POLICY_ALONE)
    (tmp_path / "methods.py").write_text(METHODS)
    before = set(stopping.descendants(os.getpid()))  # of other tests, which may go on
    yield tmp_path
    until = time.monotonic() + stopping.LIMIT
    while left := [pid for pid in stopping.descendants(os.getpid()) if pid not in before]:
        assert time.monotonic() < until, [command(pid) for pid in left]
        time.sleep(0.05)


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def slots(root: Path, clock: SetClock, n: int) -> None:
    """Run the next `n` slots of the real cycle, with the scripted model."""
    folder, home = root / "workflows" / "tiny", root / "home"

    def open_session(seed: int) -> Session:
        return Session.open(str(folder), home, root, None, None, seed, None, as_json=True)

    home.mkdir(exist_ok=True)
    with Archive(home) as archive:
        scheduler = Scheduler(
            log=archive.log, workflow="tiny", calendar=Calendar(Every(3600.0)), clock=clock,
            cycles=SessionCycles(open_session, archive, "tiny"),
        )  # fmt: skip
        assert asyncio.run(scheduler.run(n)) == n


def check(root: Path, monkeypatch: pytest.MonkeyPatch, cases: list[str]) -> None:
    """One slot per case, then a good one."""
    clock, home = SetClock(1_790_000_000.0), root / "home"
    for case in cases:
        trainer: Trainer = Method(f"{root}/methods.py:{case}")
        with monkeypatch.context() as patch:
            patch.setattr(assemble, "_trainer", lambda *_, trainer=trainer: trainer)
            slots(root, clock, 1)
        with Archive(home) as archive:
            [told] = history(archive.log, "tiny", 1)
            assert told["state"] == "failed", (case, told)
            assert cause(case) in str(told["reason"]), (case, told)
            assert len(archive.alias_history("tiny/champion")) == 1
            assert archive.log.keys("dataset") and archive.verify()["ok"]
        assert [path for path in home.rglob(".*") if path.is_dir()] == [], case
    slots(root, clock, 1)
    with Archive(home) as archive:
        assert history(archive.log, "tiny", 1)[0]["state"] == "promoted"
        assert len(archive.log.keys("slot_ended")) == len(cases) + 1


def cause(case: str) -> str:
    if case == "memory":
        return "memory ran out"
    if case.endswith("KILL"):
        return "was killed (out of memory?)"
    return "signal 15" if case.endswith("TERM") else "KeyboardInterrupt"


def test_killed_while_writing_and_out_of_memory(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(root, monkeypatch, ["write_SIGKILL", "memory"])


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_each_phase_and_cause_fifty_times(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(root, monkeypatch, (CASES * 4)[:50])
