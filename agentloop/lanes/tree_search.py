"""Collect by tree search: the paths that ended right to imitate, and values of every prefix.

Goes in: the bench. Comes out: in the log, each search as an episode, each verified path as an
episode of its own (what the policy lane trains on), and a value model fitted after every round to
the process values of all rounds so far, those of the workflow's earlier cycles included; counts for
the report. Decision: the first round of all has no value model and explores evenly; every later one
is guided by what those before it taught. Which cycles came before is noted when a cycle begins, so
that a resumed one is guided as it was at first, whatever was learned meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from agentloop.datasets.tree_values import (
    Steps,
    process_values,
    single,
    steps_of,
    worth_imitating,
)
from agentloop.errors import ToolError
from agentloop.graphs.load import load_graph
from agentloop.graphs.text import final_answer
from agentloop.lanes.bench import Bench, Order
from agentloop.lanes.bench import score as graded
from agentloop.lanes.gated import note_cut
from agentloop.ports import Embedder, part
from agentloop.records import Episode, Json, Task, ToolSpec
from agentloop.rewards.linear import Linear, ridge
from agentloop.store.query import Entry, Query
from agentloop.trajectories.codec import from_json, to_json
from agentloop.workspace import Workspace

Count = Annotated[int, Field(ge=1, le=100_000)]
VALUE_MODEL = "value_model"
"""Kind of the log's entries that hold one, and the step that notes with which a cycle began."""
SPARE = 3
"""Model calls that a search does not plan with (see the graph)."""


@dataclass(frozen=True)
class ValueModel:
    """Scores a task and the steps so far, as one text, by a linear map of its embedding."""

    linear: Linear
    embedder: Embedder

    def scores(self, texts: Sequence[str]) -> list[float]:
        """One value in [0, 1] per text."""
        features = np.asarray(self.embedder.embed(list(texts)), dtype=np.float64)
        return [min(1.0, max(0.0, value)) for value in self.linear.scores(features)]


@dataclass(frozen=True)
class ValueTool:
    """A value model as a searching graph is lent it: a tool that the graph calls, not the model."""

    model: ValueModel

    @property
    def spec(self) -> ToolSpec:
        """`texts` in, a JSON list of numbers out."""
        texts: dict[str, Json] = {"type": "array", "items": {"type": "string"}}
        parameters: dict[str, Json] = {"type": "object", "properties": {"texts": texts}}
        return ToolSpec(name="value", description="What paths are worth.", parameters=parameters)

    async def call(self, arguments: dict[str, Json]) -> str:
        """Raises `ToolError` unless `texts` is a list of texts."""
        texts = arguments.get("texts")
        if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
            raise ToolError("give `texts`, a list of texts")
        return json.dumps(self.model.scores([str(one) for one in texts]) if texts else [])


@dataclass(frozen=True)
class Harvest:
    """What one search taught."""

    traces: list[Episode]
    """Verified paths, scored."""
    texts: list[str]
    """Prefixes whose worth is known, as the value model reads them."""
    values: list[float]
    """One process value per text."""
    good: list[bool]
    """Whether it leads to a right end."""
    ends: int
    right: int


@part
class TreeSearch:
    """`rounds` rounds of `tasks` searches with `calls` proposals each."""

    graph: str = "tree_sampling"
    """Name or reference of the graph that searches."""
    rounds: Count = 2
    tasks: Count = 16
    calls: Count = 24
    temperature: float = 0.7
    guided: bool = True
    """Search with the value model; without it every prefix is worth the same."""
    floor: float = 0.2
    """Paths with a step, before the last, worth less than this share of even progress are not
    imitated (the authors' threshold, which they apply to whole paths)."""
    penalty: float = 0.3
    """Of the value model's ridge regression."""

    @property
    def rollouts(self) -> int:
        """Searches, for the plan."""
        return self.rounds * self.tasks

    async def collect(self, bench: Bench) -> Json:
        """Search, grade, infer values, refit; counts per round."""
        drawn = bench.tasks.draw(self.rounds * self.tasks, split="train", seed=bench.seed)
        model, counts = self.known(bench), list[Json]()
        texts, values = self.taught(bench)
        for number in range(1, self.rounds + 1):
            tasks = drawn[(number - 1) * self.tasks : number * self.tasks]
            guide = model if self.guided else None
            found = await self.search(self.searching(bench, guide), tasks, number, guide)
            for one in found:
                texts += one.texts
                values += one.values
            if texts:
                linear = ridge(
                    np.asarray(bench.embedder.embed(texts)), values, penalty=self.penalty
                )
                model = ValueModel(linear, bench.embedder)
            counts.append(self.note(bench, number, found, model))
        return {"rounds": counts}

    def searching(self, bench: Bench, guide: ValueModel | None) -> Bench:
        """The bench with the graph that searches, the value model lent to it and its budget."""
        graph = load_graph(self.graph, Workspace.find().roots, Path.cwd())
        return replace(
            bench,
            runner=replace(bench.runner, graph=graph),
            tools=[ValueTool(guide)] if guide else [],
            limits=replace(bench.limits, turns=self.calls + SPARE),
        )

    async def search(
        self, bench: Bench, tasks: Sequence[Task], number: int, guide: ValueModel | None
    ) -> list[Harvest]:
        """One search per task, and what it taught, in the log. The searches themselves are kept
        under another purpose than their paths, so that nobody imitates a whole tree."""
        order = Order(purpose="train", subject=f"search {number}", temperature=self.temperature)
        made = await bench.attempt(tasks, bench.bundle(bench.champion), order)
        found = [await self.harvest(bench, one, guide) for one in made if one.score is not None]
        traces = [trace for one in found for trace in one.traces]
        note_cut(bench, f"search {number}", traces)
        unscored = [replace(one, score=None) for one in traces]
        await bench.archive.add_episodes(unscored, scope=bench.workflow)
        scores = [(one.id, one.score) for one in traces if one.score is not None]
        await bench.archive.add_scores(scores, "reward", scope=bench.workflow)
        return found

    async def harvest(self, bench: Bench, episode: Episode, guide: ValueModel | None) -> Harvest:
        """Grade every end of a search and infer what its prefixes are worth; nothing is logged."""
        steps = steps_of(episode.trajectories[0])
        answers = {end: final_answer(steps.texts[end]) for end in steps.ends}
        asked = [
            replace(episode, id=f"{episode.id}/{end}", answer=answer, failure=None, score=None)
            for end, answer in answers.items()
        ]
        scored = await graded(bench.reward, asked)
        scores = {end: one.score for end, one in zip(answers, scored, strict=True) if one.score}
        right = [end for end, score in scores.items() if score.success]
        values = process_values(steps.parents, right, [end for end in scores if end not in right])
        known = {at: value for at, value in enumerate(values) if at and value is not None}
        leading = {at for end in right for at in steps.path(end)}
        given = self.given(episode, steps, right, guide)
        return Harvest(
            traces=[
                single(episode, steps, end, answer=answers[end], score=scores[end])  # type: ignore[arg-type]
                for end in worth_imitating(steps, right, given, floor=self.floor)
            ],
            texts=[text_of(episode.task, steps.prefix(at)) for at in known],
            values=list(known.values()),
            good=[at in leading for at in known],
            ends=len(scores),
            right=len(right),
        )

    def given(
        self, episode: Episode, steps: Steps, right: Sequence[int], guide: ValueModel | None
    ) -> dict[int, float]:
        """What the search's value model says of the prefixes of right ends; empty without one."""
        places = sorted({at for end in right for at in steps.path(end)})
        if guide is None or not places:
            return {}
        texts = [text_of(episode.task, steps.prefix(at)) for at in places]
        return dict(zip(places, guide.scores(texts), strict=True))

    def known(self, bench: Bench, *, own: bool = False) -> ValueModel | None:
        """The value model that this cycle begins with: the last of the cycles before it. With `own`
        the latest that there is."""
        for body in map(_body, self.rounds_before(bench, own=own)):
            if body["linear"] is not None:
                return ValueModel(from_json(Linear, body["linear"]), bench.embedder)
        return None

    def taught(self, bench: Bench) -> tuple[list[str], list[float]]:
        """Prefixes and what they were worth, of all rounds before this cycle."""
        texts, values = list[str](), list[float]()
        for body in map(_body, reversed(self.rounds_before(bench))):
            texts += body.get("texts", [])
            values += body.get("worth", [])
        return texts, values

    def rounds_before(self, bench: Bench, *, own: bool = False) -> list[Entry]:
        """What the rounds of this workflow left, newest first: those before the cycle began or,
        with `own`, all. The place in the log where it began is noted the first time."""
        query = Query(kinds=(VALUE_MODEL,), scope=bench.workflow, newest=True)
        if own:
            return list(bench.archive.read(query))
        began = bench.archive.step(bench.run, VALUE_MODEL)
        if not isinstance(began, int):
            others = (one.seq for one in bench.archive.read(query) if not _own(one, bench))
            began = next(others, 0)
            bench.archive.add_step(bench.run, VALUE_MODEL, began)
        return list(bench.archive.read(replace(query, until=began)))

    def note(
        self, bench: Bench, number: int, found: Sequence[Harvest], model: ValueModel | None
    ) -> Json:
        """The counts of a round; they are logged with what it taught and the model that came of
        it."""
        counts: dict[str, Json] = {
            "searches": len(found),
            "solved": sum(one.right > 0 for one in found),
            "ends": sum(one.ends for one in found),
            "right": sum(one.right for one in found),
            "traces": sum(len(one.traces) for one in found),
            "values": sum(len(one.values) for one in found),
        }
        linear = None if model is None else to_json(model.linear)
        body: dict[str, Json] = {
            **counts, "linear": linear,
            "texts": [text for one in found for text in one.texts],
            "worth": [value for one in found for value in one.values],
        }  # fmt: skip
        bench.archive.add_event(VALUE_MODEL, f"{bench.run}/{number}", bench.workflow, body)
        return counts


def text_of(task: Task, prefix: Sequence[str]) -> str:
    """A prefix as the value model reads it (the searching graph words it the same)."""
    return "\n".join((task.prompt, *prefix))


def _own(entry: Entry, bench: Bench) -> bool:
    return entry.key.startswith(f"{bench.run}/")


def _body(entry: Entry) -> dict[str, Any]:
    return entry.body if isinstance(entry.body, dict) else {"linear": None}
