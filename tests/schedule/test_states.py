"""A state machine over real cycles of a scripted model: crashes, faults of the model, a full disk,
rollbacks and clocks that are set, in any order; what must hold holds after each step."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)  # fmt: skip
from schedule_fixtures import SetClock

from agentloop.cli.schedule import SessionCycles
from agentloop.cli.session import Session
from agentloop.errors import StoreError, UsageError
from agentloop.records import Bundle, Instruction
from agentloop.schedule import Calendar, Every, Scheduler
from agentloop.store.archive import Archive
from agentloop.store.log import Log
from agentloop.store.query import Query

YAML = """\
title: Micro
model: scripted
tasks: {use: agentloop.tasks.files:Jsonl, path: ./tasks.jsonl}
instruction: Plain
reward: agentloop.rewards.verify:Exact
collect: {use: agentloop.lanes.sample:Sample, tasks: 2, samples: 1}
lanes:
  instructions: ./parts.py:Toggle
heldout: {n: 8, lanes: 8}
budget: {tokens: 4000, month: {rollouts: 150, tokens: 20000}}
retries: {attempts: 1}
scripted:
  tasks: {use: agentloop.tasks.files:Jsonl, path: ./tasks.jsonl}
  replies: ./parts.py:replies
"""
PARTS = '''\
"""An agent that is right under a good instruction, and a lane that turns good into plain."""

from dataclasses import replace
from pathlib import Path

import agentloop
from agentloop.errors import ModelError, TrainingError
from agentloop.records import Instruction, Proposal

FAULT = Path(__file__).with_name("fault")


def replies(request):
    if FAULT.exists():
        left = int(FAULT.read_text()) - 1
        if left < 0:
            raise ModelError("the endpoint is down")
        FAULT.write_text(str(left))
    system = next((m.content for m in request.messages if m.role == "system"), "")
    asked = request.messages[-1].content.split()[1]
    return f"Answer: {asked}" if "Good" in system else "Answer: nothing"


@agentloop.part
class Toggle:
    rollouts: int = 0

    async def propose(self, bench):
        champion = bench.bundle(bench.champion)
        kind = "Plain" if "Good" in bench.instruction(champion).text else "Good"
        if bench.seed % 5 == 0:
            raise TrainingError("this lane fails for one seed in five")
        made = Instruction(text=f"{kind} {bench.seed}", parents=(champion.instruction,))
        name = bench.archive.put(made)
        bundle = replace(champion, instruction=name)
        return Proposal(lane="instructions", state="proposed", bundle=bundle, candidate=name)
'''


class Crash(BaseException):
    """The process ends here."""


@contextmanager
def broken(at: int, error: BaseException, times: int) -> Iterator[None]:
    """From the `at`-th commit on, `times` of them fail and write nothing."""
    real, count = Log._write, [0]

    def write(self: Log, jobs: Any) -> None:
        count[0] += 1
        if not at <= count[0] < at + times:
            return real(self, jobs)
        for job in jobs:
            job.done.set_exception(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "_write", write)
        yield


class Cycles(RuleBasedStateMachine):
    """One home over many processes."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        root = Path(self.folder.name)
        self.flow, self.home = root / "micro", root / "home"
        self.flow.mkdir()
        self.home.mkdir()
        (self.flow / "workflow.yaml").write_text(YAML)
        (self.flow / "parts.py").write_text(PARTS)
        rows = [
            {"id": f"{split}-{n}", "prompt": f"Say {split}{n}", "expected": f"{split}{n}",
             "split": split}
            for split, count in (("train", 4), ("heldout", 8)) for n in range(count)
        ]  # fmt: skip
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (self.flow / "tasks.jsonl").write_text(lines)
        self.clock, self.serving = SetClock(1_790_000_000.0), list[str]()
        self.steps = 0

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def process(self, slots: int) -> None:
        """A scheduler process that ends when nothing is due."""

        def open_session(seed: int) -> Session:
            return Session.open(str(self.flow), self.home, None, None, None, seed, None, True)

        with Archive(self.home) as archive:
            scheduler = Scheduler(
                log=archive.log, workflow="micro", calendar=Calendar(Every(3600.0)),
                cycles=SessionCycles(open_session, archive, "micro"), clock=self.clock, pause=1800,
            )  # fmt: skip
            asyncio.run(scheduler.run(slots, stay=False))

    @rule()
    def an_hour(self) -> None:
        self.clock.time += 3600
        self.process(1)

    @rule(at=st.integers(1, 45))
    def a_crash(self, at: int) -> None:
        self.clock.time += 3600
        try:
            with broken(at, Crash(), 10**9):
                self.process(1)
        except Crash:
            return

    @rule(at=st.integers(1, 45), times=st.integers(1, 4))
    def a_full_disk(self, at: int, times: int) -> None:
        self.clock.time += 3600
        try:
            with broken(at, StoreError("the disk is full"), times):
                self.process(1)
        except StoreError:
            return

    @rule(after=st.integers(0, 20))
    def an_endpoint_that_fails(self, after: int) -> None:
        self.clock.time += 3600
        (self.flow / "fault").write_text(str(after))
        try:
            self.process(1)
        finally:
            (self.flow / "fault").unlink()

    @rule(by=st.sampled_from([-7200.0, 7200.0, 86400.0]))
    def the_clock_is_set(self, by: float) -> None:
        self.clock.time += by

    @precondition(lambda self: self.champions() >= 2)
    @rule()
    def a_rollback(self) -> None:
        with Archive(self.home) as archive:
            before, now = archive.before("micro/champion"), archive.alias("micro/champion")
            assert archive.rollback("micro/champion") == before
            after = archive.alias("micro/champion")
            assert after is not None and now is not None and after.bundle == before != now.bundle

    def champions(self) -> int:
        """How many bundles a rollback and the present one are, by the history of the alias."""
        with Archive(self.home) as archive:
            try:
                archive.before("micro/champion")
            except UsageError:
                return 1
            return 2

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "home") or not (self.home / "log.db").exists():
            return
        with Archive(self.home) as archive:
            assert archive.verify()["ok"]
            one_champion(archive)
            acyclic(archive)
            slots_and_cycles(archive)
            budgets(archive)


def one_champion(archive: Archive) -> None:
    history = archive.alias_history("micro/champion")
    for pointer in history:
        bundle = archive.get(pointer.bundle, Bundle)
        assert archive.get(bundle.instruction, Instruction)
    # A promotion has a passed verdict of its cycle, and comes once.
    promoted = [one.reason for one in history if one.reason.startswith("promoted by ")]
    assert len(promoted) == len(set(promoted))
    for reason in promoted:
        assert any(one.passed for one in archive.verdicts(reason.removeprefix("promoted by ")))


def acyclic(archive: Archive) -> None:
    parents = {name: one.parents for name, one, _ in archive.artifacts(Instruction)}
    for start in parents:
        seen, due = set[str](), list(parents[start])
        while due:
            name = due.pop()
            assert name != start, "an instruction descends from itself"
            if name not in seen:
                seen.add(name)
                due += parents[name]


def slots_and_cycles(archive: Archive) -> None:
    begun, ended = set(archive.log.keys("slot_begun")), set(archive.log.keys("slot_ended"))
    assert len(begun - ended) <= 1
    cycles = {str(one.body["cycle"]) for one in archive.read(Query(kinds=("slot_begun",)))}  # type: ignore[index,call-overload]
    assert len(cycles) == len(begun) and set(archive.log.keys("cycle")) <= cycles


def budgets(archive: Archive) -> None:
    """All of a month here: no cycle and no month used more than it may, but by the one call that a
    meter lets go alone (some 30 tokens)."""
    assert len(archive.log.keys("episode")) <= 150
    cycles = archive.log.keys("cycle")
    spent = [archive.spent(one).tokens for one in cycles]
    assert sum(spent) <= 20000 + 100 and max([0, *spent]) <= 4000 + 100


def run_machine(examples: int, steps: int) -> None:
    given = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(Cycles, settings=given)


def test_a_few_histories() -> None:
    run_machine(3, 8)


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_many_histories() -> None:
    run_machine(40, 15)
