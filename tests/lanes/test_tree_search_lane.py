"""Collecting by tree search: what the value model is lent as, and which one a cycle begins with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agentloop.errors import BudgetReached, ToolError
from agentloop.lanes.bench import Bench, Order
from agentloop.lanes.tree_search import (
    VALUE_MODEL,
    Harvest,
    TreeSearch,
    ValueModel,
    ValueTool,
    text_of,
)
from agentloop.records import Task
from agentloop.rewards.linear import Linear, ridge
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.workflows.assemble import Options, assemble
from agentloop.workflows.load import load
from agentloop.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]


class Lengths:
    """Embeds a text as its length and its number of lines."""

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[float(len(text)), float(len(text.splitlines()))] for text in texts]


def model(slope: float) -> ValueModel:
    return ValueModel(Linear(weights=(0.0, slope), bias=0.0), Lengths())


def test_values_are_shares_and_come_as_json() -> None:
    tool = ValueTool(model(0.25))
    text = text_of(Task(id="t", prompt="p"), ["one", "two"])
    assert text == "p\none\ntwo"
    given = asyncio.run(tool.call({"texts": [text, "a\nb\nc\nd\ne", "x"]}))
    assert json.loads(given) == [0.75, 1.0, 0.25]
    assert json.loads(asyncio.run(tool.call({"texts": []}))) == []
    for wrong in ({}, {"texts": "p"}, {"texts": [1]}):
        with pytest.raises(ToolError, match="a list of texts"):
            asyncio.run(tool.call(wrong))  # type: ignore[arg-type]


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive(tmp_path) as opened:
        yield opened


def bench(archive: Archive, run: str) -> Any:
    return SimpleNamespace(archive=archive, run=run, workflow="w", embedder=Lengths())


def linear(found: ValueModel | None) -> Linear:
    assert found is not None
    return found.linear


def test_a_cycle_begins_with_the_last_model_of_those_before(archive: Archive) -> None:
    part, empty = TreeSearch(), [Harvest([], [], [], [], 3, 1)]
    first = bench(archive, "cycle-1")
    assert part.known(first) is None and part.known(first, own=True) is None
    counts = part.note(first, 1, empty, None)
    assert counts == {"searches": 1, "solved": 1, "ends": 3, "right": 1, "traces": 0, "values": 0}
    part.note(first, 2, empty, model(0.5))
    assert part.known(first) is None, "a resumed cycle begins as it began"
    assert linear(part.known(first, own=True)) == model(0.5).linear
    second = bench(archive, "cycle-2")
    assert linear(part.known(second)) == model(0.5).linear
    part.note(second, 1, empty, model(0.1))
    assert linear(part.known(second)) == model(0.5).linear
    assert linear(part.known(second, own=True)) == model(0.1).linear
    other = SimpleNamespace(**{**vars(second), "workflow": "other"})
    assert part.known(other) is None  # type: ignore[arg-type]
    assert archive.log.get(VALUE_MODEL, "cycle-1/2") is not None


def test_a_resumed_cycle_is_guided_as_it_was_at_first(archive: Archive) -> None:
    part = TreeSearch()
    early, late = Harvest([], ["early"], [0.25], [True], 1, 1), Harvest([], ["late"], [1], [], 1, 1)
    part.note(bench(archive, "cycle-1"), 1, [early], model(0.1))
    killed = bench(archive, "cycle-2")
    assert linear(part.known(killed)) == model(0.1).linear
    part.note(bench(archive, "cycle-3"), 1, [late], model(0.9))
    assert linear(part.known(killed)) == model(0.1).linear
    assert part.taught(killed) == (["early"], [0.25])
    assert part.taught(bench(archive, "cycle-4")) == (["early", "late"], [0.25, 1])


@asynccontextmanager
async def opened(home: Path, run: str, seed: int) -> AsyncIterator[Bench]:
    space = Workspace.find()
    loaded = load(str(ROOT / "workflows" / "rest_mcts"), space)
    home.mkdir(exist_ok=True)
    with Archive(home) as archive:
        options = Options(run=run, seed=seed, workspace=space, home=home, model="scripted")
        async with assemble(loaded, archive, options) as kit:
            yield kit.bench


def test_a_value_model_learns_from_all_rounds_so_far(tmp_path: Path) -> None:
    part = TreeSearch(rounds=1, tasks=6, calls=16)

    async def main() -> None:
        for number in (1, 2):
            async with opened(tmp_path / "home", f"cycle-{number}", number) as bench:
                await part.collect(bench)
                bodies: list[Any] = [
                    one.body for one in bench.archive.read(Query(kinds=(VALUE_MODEL,)))
                ]
                texts = [text for body in bodies for text in body["texts"]]
                worth = [value for body in bodies for value in body["worth"]]
                assert len(bodies) == number and bodies[-1]["texts"]
                features = np.asarray(bench.embedder.embed(texts))
                whole = ridge(features, worth, penalty=part.penalty)
                assert bodies[-1]["linear"]["weights"] == pytest.approx(whole.weights)

    asyncio.run(main())


def test_paths_do_not_use_up_the_rollouts(tmp_path: Path) -> None:
    part = TreeSearch(rounds=2, tasks=3, calls=16)

    async def main() -> None:
        async with opened(tmp_path / "home", "cycle-1", 0) as bench:
            bench.max_rollouts = part.rollouts + 2
            await part.collect(bench)
            paths = bench.archive.episodes(Query(purpose="collect"))
            assert len(paths) > 2
            tasks = bench.tasks.draw(3, split="heldout", seed=0)
            champion, order = bench.bundle(bench.champion), Order(purpose="eval", subject="after")
            await bench.attempt(tasks[:2], champion, order)
            with pytest.raises(BudgetReached, match="8 of 8 rollouts are used and 1 more"):
                await bench.attempt(tasks, champion, order)

    asyncio.run(main())
