"""The agents that answer in steps: one path, and a tree of them that is searched."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rollout_fixtures import ROOT, attempt, rollouts

from agentloop.datasets.rows import sft_rows
from agentloop.datasets.tree_values import steps_of
from agentloop.graphs.context import RunContext
from agentloop.graphs.load import load_graph
from agentloop.models.scripted import Scripted
from agentloop.records import Completion, Json, Limits, Request, Sampling, ToolSpec
from agentloop.trajectories.search_tree import SearchSettings, search

NEXT = "Output:\n(next step)"
HOT = Sampling(seed=1, temperature=0.7)


def said(request: Request) -> list[str]:
    return [one.content for one in request.messages if one.role == "assistant"]


def guess(request: Request) -> str:
    """Three digits, one a step, then the answer; drawn by the call's seed."""
    path = said(request)
    if len(path) == 3:
        return f"Answer: {''.join(step[-1] for step in path)}"
    digit = random.Random(f"{request.sampling.seed}/{path}").randrange(1, 4)
    return f"{('first', 'second', 'third')[len(path)]} digit {digit}"


@dataclass
class Nearer:
    """Knows the number 321: worth the share of right digits so far, a whole answer more."""

    asked: list[str]

    @property
    def spec(self) -> ToolSpec:
        return ToolSpec(name="value", description="", parameters={})

    async def call(self, arguments: dict[str, Json]) -> str:
        texts: Any = arguments["texts"]
        self.asked += texts
        return json.dumps([self.value(text.split("\n")[1:]) for text in texts])

    @staticmethod
    def value(path: list[str]) -> float:
        digits = [step[-1] for step in path[:3]]
        right = sum(one == wanted for one, wanted in zip(digits, "321", strict=False))
        return right / 3 - 0.3 * (len(digits) - right)


def graph(name: str) -> Any:
    return load_graph(name, [ROOT], ROOT)


def runs(name: str, samples: int, *, turns: int = 63, **options: Any) -> list[Any]:
    options.setdefault("tools", ())
    orders = [attempt("Guess my number.", sampling=HOT, sample=at) for at in range(samples)]
    return rollouts(
        options.pop("replies", guess), orders, graph=graph(name),
        limits=Limits(turns=turns, tokens=10_000, seconds=20), **options,
    )  # fmt: skip


def run(name: str, **options: Any) -> Any:
    return runs(name, 1, **options)[0]


def test_one_path_step_after_step() -> None:
    episode = run("steps")
    assert episode.failure is None and len(episode.answer) == 3
    messages = [node.message.content for node in episode.trajectories[0].nodes]
    assert messages[0] == "Guess my number." and messages[2::2] == [NEXT] * 3
    assert episode.usage.calls == 4 and episode.trajectories[0].drift == 0
    [row] = sft_rows([episode], system="")
    assert row.sampled == (True, False) * 3 + (True,), "what asks for the next step has no loss"
    stuck = run("steps", turns=2)
    assert stuck.failure is not None and stuck.failure.reason == "turn_limit"


def test_a_step_ends_with_its_line() -> None:
    stops = []

    def noting(request: Request) -> str:
        stops.append(request.sampling.stop)
        return guess(request)

    run("steps", replies=noting)
    run("tree_search", replies=noting, turns=8)
    assert set(stops) == {("\n",)}


def test_a_search_that_is_told_values_finds_more() -> None:
    guided = runs("tree_search", 8, tools=(Nearer([]),))
    assert all(one.failure is None and 4 <= one.usage.calls <= 60 for one in guided)
    blind = runs("tree_search", 8)
    found = [sum(one.answer == "321" for one in arm) for arm in (guided, blind)]
    assert found[0] >= 2 and found[0] > 2 * found[1]


def test_a_path_is_valued_once_and_as_the_task_and_its_steps() -> None:
    tool = Nearer([])
    run("tree_search", tools=(tool,))
    assert len(tool.asked) == len(set(tool.asked)) > 10
    assert all(text.startswith("Guess my number.\nfirst digit ") for text in tool.asked)


def test_sampling_goes_on_after_a_solution_and_the_trajectory_is_the_tree() -> None:
    tool = Nearer([])
    episode = run("tree_sampling", tools=(tool,))
    assert episode.failure is None and episode.trajectories[0].drift == 0
    steps = steps_of(episode.trajectories[0])
    assert len({steps.texts[end] for end in steps.ends}) > 3
    numbers = range(1, len(steps.texts))
    tried = {"\n".join(["Guess my number.", *steps.prefix(at)]) for at in numbers}
    assert set(tool.asked) == tried


def test_a_search_leaves_calls_for_a_step_that_was_lost() -> None:
    episode = run("tree_sampling", turns=17)
    assert episode.failure is None and episode.usage.calls == 14


def test_the_graph_searches_as_the_functions_do() -> None:
    """The same proposals and values give the same tree, to the last number."""

    def proposer() -> Callable[[list[str]], str]:
        numbers = itertools.count()
        return lambda path: f"step {zlib.crc32(f'{next(numbers)}/{path}'.encode()) % 50}"

    def value(path: list[str]) -> float:
        return random.Random("/".join(path)).random()

    class Drawn:
        spec = ToolSpec(name="value", description="", parameters={})

        async def call(self, arguments: dict[str, Json]) -> str:
            texts: Any = arguments["texts"]
            return json.dumps([value(text.split("\n")[1:]) for text in texts])

    propose = proposer()
    context = RunContext(
        model=Scripted(lambda request: propose(said(request))),  # type: ignore[arg-type]
        tools={"value": Drawn()}, limits=Limits(turns=43), native_tools=False,
    )  # fmt: skip
    task = {"messages": [{"role": "user", "content": "Go."}]}
    config = {"recursion_limit": 1000}
    state = asyncio.run(graph("tree_search").ainvoke(task, config, context=context))
    settings = SearchSettings(calls=40)
    own = search(settings, propose=proposer(), solved=lambda path: False, value=value)
    assert state["tree"] == own == json.loads(json.dumps(state["tree"]))
    assert own["calls"] == 40 and state["answer"] == ""


class Failing(Scripted):
    """Breaks off at one call, once."""

    def __init__(self, fail: int) -> None:
        super().__init__(guess)
        self.fail, self.keys = fail, list[str]()

    async def complete(self, request: Request) -> Completion:
        self.keys.append(request.key)
        if len(self.keys) == self.fail:
            raise ConnectionError("once")
        return await super().complete(request)


@pytest.mark.parametrize("fail", [1, 5, 12])
def test_a_search_goes_on_from_its_checkpoint(tmp_path: Path, fail: int) -> None:
    model = Failing(fail)
    options = {"turns": 24, "replies": model, "tools": (Nearer([]),), "checkpoints": tmp_path}
    first = run("tree_sampling", **options)
    assert first.failure is not None and first.failure.reason == "graph_error"
    again = run("tree_sampling", **options)
    assert again.failure is None and len(again.answer) == 3
    assert len(model.keys) <= 24, "finished steps are not repeated"
    assert {one.split("/")[0] for one in model.keys} == {again.id}
