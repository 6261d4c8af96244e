"""What ends a phase and not its cycle: data that may not or cannot be learned from, a trainer that
fails; and what stops the cycle, because it can be mended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentloop.cycle import cycle
from agentloop.datasets.manifest import rows_path
from agentloop.errors import TrainingError, UsageError
from agentloop.lanes.phase import Phase
from agentloop.lanes.sample import Sample
from agentloop.ports import Split, Tasks, Trainer
from agentloop.records import Dataset, Episode, Policy, Task
from agentloop.store.query import Query
from agentloop.training.dry import DryTrainer
from agentloop.training.job import ProcessTrainer

Opened = Callable[..., Any]
RL: dict[str, Any] = {"select": {"mixed_groups": True}, "credit": "group", "rows": "rl"}
SAMPLE = Sample(tasks=8, samples=4)


class Moved:
    """The training tasks of `source`, as if they were held out now; `said` changes what they
    say."""

    def __init__(self, source: Tasks, said: Callable[[str], str]) -> None:
        self.source, self.said = source, said

    def draw(self, n: int, *, split: Split, seed: int) -> list[Task]:
        found = self.source.draw(n, split="train", seed=seed)
        return [Task(id=f"new-{at}", prompt=self.said(one.prompt)) for at, one in enumerate(found)]

    def learn(self, episodes: Sequence[Episode]) -> None:
        pass


def test_a_frozen_dataset_is_not_learned_from_when_it_may_not_be(opened: Opened) -> None:
    clean: dict[str, Any] = {**RL, "select": {"mixed_groups": True, "decontaminate": {}}}

    async def main() -> None:
        async with opened() as kit:
            bench = kit.bench
            await SAMPLE.collect(bench)
            proposal = await Phase(**clean).propose(bench)
            name = str(bench.archive.get(str(proposal.candidate), Policy).dataset)
            once = Phase(**clean, dataset=name)
            assert await once.propose(bench) == proposal
            held = replace(bench, tasks=Moved(bench.tasks, lambda said: f" {said}\n"))
            with pytest.raises(TrainingError, match=r"any more: episode .* is of the held-out"):
                await once.propose(held)
            near = replace(bench, tasks=Moved(bench.tasks, lambda said: f"Please! {said}"))
            with pytest.raises(TrainingError, match="repeats the held-out task `new-"):
                await once.propose(near)
            assert await Phase(**RL, dataset=name).propose(near) == proposal  # never asked for
            with pytest.raises(UsageError, match="rollouts of the workflow `tiny`; name a dataset"):
                await once.propose(replace(bench, workflow="other"))
            rows = rows_path(bench.home / "datasets", bench.archive.get(name, Dataset))
            rows.write_bytes(rows.read_bytes()[:-9])
            with pytest.raises(TrainingError, match="was changed after it was written"):
                await once.propose(bench)

    asyncio.run(main())


def test_episodes_without_what_the_credit_reads_fail_the_lane(opened: Opened) -> None:
    lane = Phase(rows="rl", credit={"use": "group", "of": "style"}, log="workflow")

    async def main() -> None:
        async with opened("run-0") as kit:  # an older cycle, whose score has no such part
            await SAMPLE.collect(kit.bench)
        async with opened("run-1") as kit:
            with pytest.raises(TrainingError, match="has no part `style`; it has: none"):
                await lane.propose(kit.bench)

    asyncio.run(main())


METHODS = """
import os
from pathlib import Path

def killed(job):
    os.kill(os.getpid(), 9)

def memory(job):
    raise MemoryError

def mixed(job):
    from agentloop.errors import UsageError
    raise UsageError("the rows were sampled at the temperatures [0.7, 1.0]; select one")

def absent(job):
    from agentloop.errors import MissingDependency
    raise MissingDependency("`trl`", "agentloop setup local")

def damaged(job):
    path = Path(job.dataset)
    path.write_bytes(path.read_bytes().replace(b"Multiply", b"Subtract", 1)[:-9])
    from agentloop.training import dry
    dry.train(job)
"""
LANE = "{use: agentloop.lanes.phase:Phase, select: {success: true}, method: ./methods.py:%s}"


@pytest.mark.parametrize(
    ("method", "cause"),
    [
        ("killed", "the trainer was killed"),
        ("memory", "memory ran out"),
        ("damaged", "was changed after it was written"),
        ("mixed", "sampled at the temperatures"),
    ],
)
def test_a_cycle_whose_trainer_fails(
    opened: Opened, tmp_path: Path, method: str, cause: str
) -> None:
    """The lane says the cause, the store is whole, the champion serves, the next cycle starts."""

    async def once(run: str, trainer: Trainer) -> Any:
        async with opened(run, LANE % method) as kit:
            (tmp_path / "workflows" / "tiny" / "methods.py").write_text(METHODS)
            kit.bench.trainer = trainer
            before = kit.bench.archive.alias(kit.alias)
            report = await cycle(kit)
            verified = kit.bench.archive.verify()
            assert verified["ok"], verified
            after = kit.bench.archive.alias(kit.alias)
            made = len(kit.bench.archive.episodes(Query(run=run)))
            return report, before, after, made

    report, before, after, made = asyncio.run(once("cycle-1", ProcessTrainer(deadline=60)))
    assert report.lanes["policy"].state == "failed" and cause in report.lanes["policy"].reason
    assert before is not None and after == before and made > 0
    report, _, after, _ = asyncio.run(once("cycle-2", DryTrainer()))
    assert report.lanes["policy"].state in ("promoted", "kept")


def test_a_trainer_that_is_not_installed_stops_the_cycle(opened: Opened, tmp_path: Path) -> None:
    """It can be resumed once it is: nothing is noted as failed."""

    async def main() -> None:
        async with opened("cycle-1", LANE % "absent") as kit:
            (tmp_path / "workflows" / "tiny" / "methods.py").write_text(METHODS)
            kit.bench.trainer = ProcessTrainer(deadline=60)
            with pytest.raises(UsageError, match="`trl` is not installed"):
                await cycle(kit)
            kit.bench.trainer = DryTrainer()
            assert (await cycle(kit)).lanes["policy"].state in ("promoted", "kept")

    asyncio.run(main())
