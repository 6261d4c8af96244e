"""Collect chains: similar tasks one after the other, where what is written on one can be called on
the next.

Goes in: the bench, with tasks that say by `data["scenario"]` which belong together. Comes out:
scored episodes in the log, and counts. At the first task of a chain the library is empty; at a
later one it holds the functions that *this* rollout wrote on the earlier ones, in code that ran
without an error, as far as they pass the smoke test. So members of a group are shown different
prompts at a later task; credit has to compare them all the same (`CHAIN` says who belongs where).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from agentloop.lanes.bench import Bench, Order, stream
from agentloop.lanes.function_store import FunctionStore, sound
from agentloop.ports import part
from agentloop.records import Episode, Json, Task
from agentloop.tools.functions import Function, functions
from agentloop.tools.world_code import WorldCode
from agentloop.trajectories.codec import to_json

LIBRARY = "library"
"""The key of `Task.data` for functions that a rollout may call."""
CHAIN = "chain"
"""The key for its place: `position` in the chain (from 1) and `member` of the group."""


@part
class Chains:
    """`chains` chains of `length` tasks, `samples` rollouts of each."""

    chains: Annotated[int, Field(ge=1)] = 8
    samples: Annotated[int, Field(ge=1)] = 8
    length: Annotated[int, Field(ge=2)] = 2
    temperature: Annotated[float, Field(gt=0.0)] = 1.0

    @property
    def rollouts(self) -> int:
        """At most so many, for the plan."""
        return self.chains * self.samples * self.length

    async def collect(self, bench: Bench) -> Json:
        """Roll out, score, log; how many were made, and solved at each position."""
        drawn = bench.tasks.draw(self.chains * self.length, split="train", seed=bench.seed)
        chains = siblings(drawn, self.length)[: self.chains]
        made, solved = 0, list[Json]()
        stores = {(at, who): FunctionStore() for at in range(len(chains)) for who in self._members}
        for position in range(1, self.length + 1):
            right = 0
            for who in self._members:
                tasks = [
                    with_library(chain[position - 1], stores[at, who], position, who)
                    for at, chain in enumerate(chains)
                ]
                # The seed tells members apart whose prompts are the same.
                own = replace(bench, seed=stream(bench.seed, CHAIN, who))
                order = Order(
                    purpose="collect", subject=f"chain {position}.{who}",
                    temperature=self.temperature,
                )  # fmt: skip
                found = await own.attempt(tasks, bench.bundle(bench.champion), order)
                right, made = right + sum(one.success for one in found), made + len(found)
                for at, episode in enumerate(found):
                    await remember(stores[at, who], episode, bench)
            solved.append(right)
        return {"rollouts": made, "chains": len(chains), "solved": solved}

    @property
    def _members(self) -> range:
        return range(self.samples)


def siblings(tasks: Sequence[Task], length: int) -> list[list[Task]]:
    """Chains: the first `length` tasks of each scenario that has as many."""
    found: dict[str, list[Task]] = {}
    for task in tasks:
        found.setdefault(str(task.data.get("scenario", task.id)), []).append(task)
    return [each[:length] for each in found.values() if len(each) >= length]


def with_library(task: Task, store: FunctionStore, position: int, member: int) -> Task:
    """The task as one member meets it: what it may call stands before what is asked."""
    known = [one.function for one in store.latest()]
    place: Json = {"position": position, "member": member}
    data: dict[str, Json] = {**task.data, CHAIN: place, LIBRARY: [to_json(one) for one in known]}
    return replace(task, prompt=prompt(task.prompt, known), data=data)


def prompt(asked: str, known: Sequence[Function]) -> str:
    """What is asked, below the functions that are there already."""
    if not known:
        return asked
    return "\n".join(["Functions:", *(one.signature for one in known), "", asked])


def written(episode: Episode) -> list[Function]:
    """The functions of an episode's code that ran without an error, the last of each name."""
    turns: Any = episode.state.get("turns") or []
    found = {
        one.name: one for turn in turns if not turn["error"] for one in functions(turn["code"])
    }
    return list(found.values())


async def remember(store: FunctionStore, episode: Episode, bench: Bench) -> None:
    """Keep what an episode wrote, if it can be shown to the next task."""
    worlds = [tool.world for tool in bench.tools if isinstance(tool, WorldCode)]
    calls = {spec.name for world in worlds for spec in world.tools()}
    for function in await sound(written(episode), bench.sandbox, calls):
        store.add(function, episode.task)
