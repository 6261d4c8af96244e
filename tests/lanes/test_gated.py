"""Which tasks no lane may learn from, and which errors end a lane and not its cycle."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_workflow

from agentloop.errors import (
    AgentLoopError,
    MissingDependency,
    StoreError,
    TrainingError,
    UsageError,
)
from agentloop.lanes.data_faults import caused_by_data
from agentloop.lanes.gated import HELD_OUT, held_out
from agentloop.lanes.heldout import drawn, split
from agentloop.ports import Split
from agentloop.records import Episode, Task
from agentloop.store.archive import Archive
from agentloop.workflows.assemble import Options, assemble
from agentloop.workflows.load import load
from agentloop.workspace import Workspace


class Endless:
    """Tasks that are made as they are asked for."""

    def draw(self, n: int, *, split: Split, seed: int) -> list[Task]:
        return [Task(id=f"{split}-{seed}-{at}", prompt=f"{split} {at}") for at in range(n)]

    def learn(self, episodes: Sequence[Episode]) -> None:
        pass


def test_all_that_the_gate_can_draw_is_held_out(tmp_path: Path) -> None:
    yaml = tiny_workflow.YAML.replace("heldout: {n: 24, lanes: 12}", "heldout: {n: 300}")
    folder = tiny_workflow.make(tmp_path, yaml=yaml)
    rows = [{"prompt": f"Add {n} to it.", "split": "heldout"} for n in range(400)]
    with (folder / "tasks.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "home").mkdir()

    async def main() -> None:
        space = Workspace((tmp_path, *Workspace.find().roots))
        with Archive(tmp_path / "home") as archive:
            options = Options(run="run-1", seed=0, workspace=space, home=tmp_path / "home")
            async with assemble(load(str(folder), space), archive, options) as kit:
                assert len(held_out(kit.bench)) == 440  # whatever the seed of a later cycle is
                endless = replace(kit.bench, tasks=Endless())
                assert held_out(endless) == drawn(endless.tasks, "run-1", 300 + 64)
                assert {one.id for one in held_out(endless)} >= {
                    one.id
                    for made in [split(endless.tasks, "run-1", n=300, lanes=64)]
                    for one in (*made.lanes, *made.final)
                }
                assert kit.heldout_n == 300 > HELD_OUT

    asyncio.run(main())


def because(error: AgentLoopError, cause: Exception | None) -> AgentLoopError:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        UsageError("the rows were sampled at the temperatures [0.7, 1.0]; select one"),
        StoreError("`rows.jsonl` was changed after it was written (sha256)"),
        because(StoreError("`manifest.json` is missing"), FileNotFoundError()),
    ],
)
def test_what_the_data_causes_fails_the_lane(error: AgentLoopError) -> None:
    with pytest.raises(TrainingError) as told, caused_by_data():
        raise error
    assert str(told.value) == str(error)


@pytest.mark.parametrize(
    "error",
    [
        MissingDependency("`trl`", "agentloop setup local"),
        UsageError(str(MissingDependency("`trl`", "agentloop setup local"))),  # from a process
        because(StoreError("`rows.jsonl` cannot be written"), OSError(28, "No space left")),
        because(StoreError("the log cannot be used"), sqlite3.OperationalError("locked")),
    ],
)
def test_what_can_be_mended_before_the_cycle_goes_on_stops_it(error: AgentLoopError) -> None:
    with pytest.raises(type(error)) as told, caused_by_data():
        raise error
    assert told.value is error
