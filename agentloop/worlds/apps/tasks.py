"""Tasks for the apps, in scenarios of three siblings, and the reward that reads the state.

In: a seed. Out: tasks that an expert's program solves (`solution`); scores of episodes. A scenario
(one start, one family) is `heldout` or `train` as a whole, by the hash of its owner's name, which
every prompt begins with: no two seeds can make the splits overlap, and no prompt is in both.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from random import Random
from typing import Annotated

from pydantic import Field

from agentloop.errors import GraderError, UnknownName
from agentloop.ports import Split, part
from agentloop.records import AGENT_REASONS, Episode, Json, Score, Task, content_id
from agentloop.worlds.apps.families import FAMILIES, SIBLINGS, Family
from agentloop.worlds.apps.goals import differences
from agentloop.worlds.apps.setting import owner, setting

_HELDOUT = 3
"""Of ten owners."""
_SOURCE = "agentloop.worlds.apps.tasks:Reached"


@part
class AppsTasks:
    """Scenarios of the families named (default: all), in turn."""

    families: tuple[str, ...] = ()
    siblings: Annotated[int, Field(ge=1, le=SIBLINGS)] = SIBLINGS
    """How many tasks of a scenario are drawn, next to each other."""

    def draw(self, n: int, *, split: Split, seed: int) -> list[Task]:
        """`n` tasks of different scenarios but for siblings; `data["scenario"]` tells which belong
        together, and `data["sibling"]` is the place among them."""
        chosen = [family_named(name) for name in self.families] or list(FAMILIES)
        tasks: list[Task] = []
        seen: set[str] = set()
        random = Random(f"apps:{seed}")
        while len(tasks) < n:
            family, whose = chosen[len(seen) % len(chosen)], owner(random)
            if split_of(whose) != split:
                continue
            made = scenario(family, whose, random)
            name = str(made[0].data["scenario"]) if made else ""
            if made and name not in seen:
                seen.add(name)
                tasks += made[: self.siblings]
        return tasks[:n]

    def learn(self, episodes: Sequence[Episode]) -> None:
        """The generator is fixed."""


def family_named(name: str) -> Family:
    """Raises `UnknownName`."""
    found = {family.name: family for family in FAMILIES}
    if name not in found:
        raise UnknownName("family of tasks", name, found)
    return found[name]


def split_of(whose: str) -> Split:
    """Which split an owner's scenarios belong to."""
    return "heldout" if zlib.crc32(whose.encode()) % 10 < _HELDOUT else "train"


def scenario(family: Family, whose: str, random: Random) -> list[Task]:
    """The sibling tasks of one start; none when it does not have enough different ones."""
    tables = setting(random)
    cases = family.cases(random, tables)
    if len(cases) < SIBLINGS:
        return []
    start: Json = json.loads(json.dumps(tables))
    name = content_id("scenario", whose, family.name, start)
    return [
        Task(
            id=content_id("apps", name, arguments, goal.as_json()),
            prompt=f"{whose} asks: {family.ask.format(**arguments)}",
            family=family.name,
            data={
                "owner": whose, "scenario": name, "sibling": at, "arguments": dict(arguments),
                "start": start, "goal": goal.as_json(),
            },
        )
        for at, (arguments, goal) in enumerate(cases)
    ]  # fmt: skip


def solution(task: Task, *, known: bool = False) -> str:
    """The expert's program for `task`; with `known`, where its function is there already."""
    family = family_named(task.family)
    arguments = task.data["arguments"]
    assert isinstance(arguments, dict)
    return family.use(arguments) if known else family.program(arguments)


def chains(tasks: Sequence[Task], length: int = 2) -> Iterator[list[Task]]:
    """The first `length` siblings of each scenario among `tasks`, in their order."""
    found: dict[str, list[Task]] = {}
    for task in tasks:
        found.setdefault(str(task.data["scenario"]), []).append(task)
    for siblings in found.values():
        if len(siblings) >= length:
            yield siblings[:length]


@part
class Reached:
    """Right when the episode's last state is what the task wants, and nothing else was changed."""

    async def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """1 or 0 each. Raises `GraderError` for an episode that has no state to read."""
        return [reached(episode) for episode in episodes]


def reached(episode: Episode) -> Score:
    """See `Reached.score`."""
    start, goal = episode.task.data.get("start"), episode.task.data.get("goal")
    end = episode.state.get("tables")
    if not isinstance(end, dict) or not isinstance(start, dict):
        raise GraderError(f"episode {episode.id} holds no state of the apps", episode=episode.id)
    if episode.failure is not None and episode.failure.reason not in AGENT_REASONS:
        raise GraderError(
            f"episode {episode.id} ended by {episode.failure.reason}, which is never scored",
            episode=episode.id,
        )
    answer = episode.state.get("answer")
    wrong = differences(start, end, goal, None if answer is None else str(answer))  # type: ignore[arg-type]
    return Score(
        value=float(not wrong), success=not wrong, source=_SOURCE, feedback="; ".join(wrong[:4])
    )
