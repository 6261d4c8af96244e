"""Collecting by tree search: what the value model is lent as, and which one a cycle begins with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentloop.errors import ToolError
from agentloop.lanes.tree_search import (
    VALUE_MODEL,
    Harvest,
    TreeSearch,
    ValueModel,
    ValueTool,
    text_of,
)
from agentloop.records import Task
from agentloop.rewards.linear import Linear
from agentloop.store.archive import Archive


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
