"""Tasks for the storeroom world, and the reward that reads its state.

In: a seed. Out: tasks whose houses an oracle solves in 5 to 8 actions; scores of episodes. A house
is `heldout` or `train` by the hash of its description, so no two seeds can make the splits overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from agentloop.errors import GraderError, UsageError
from agentloop.ports import Split, part
from agentloop.records import AGENT_REASONS, Episode, Json, Score, Task, content_id
from agentloop.worlds.storeroom import CHEST, KEYS, ROOMS, steps

THINGS = ("candle", "compass", "kettle", "lantern", "mirror", "rope", "teapot", "violin")
SHORTEST, LONGEST = 5, 8
_HELDOUT = 3
"""Of ten houses."""
_SOURCE = "agentloop.worlds.storeroom_tasks:Solved"


@part
class StoreroomTasks:
    """Houses with `rooms` rooms (4 to 6); the family of a task is the length of its plan."""

    rooms: int = 5

    def draw(self, n: int, *, split: Split, seed: int) -> list[Task]:
        """`n` different houses of `split`, the lengths of their plans in turn."""
        if not 4 <= self.rooms <= len(ROOMS):
            raise UsageError(f"`rooms` is {self.rooms}; give a number from 4 to {len(ROOMS)}")
        random = Random(f"storeroom:{self.rooms}:{seed}")
        lengths = range(SHORTEST, LONGEST + 1)
        tasks: list[Task] = []
        seen: set[str] = set()
        while len(tasks) < n:
            house, goal = _house(random, self.rooms)
            length = len(steps(house, goal))
            if length != lengths[len(tasks) % len(lengths)]:
                continue
            task = _task(house, goal, length)
            if _split(task) == split and task.id not in seen:
                seen.add(task.id)
                tasks.append(task)
        return tasks

    def learn(self, episodes: Sequence[Episode]) -> None:
        """The generator is fixed."""


@part
class Solved:
    """Right when the wanted thing lies in the wanted bin in the episode's last state."""

    async def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """1 or 0 each. Raises `GraderError` for an episode that has no state to read."""
        return [_score(episode) for episode in episodes]


def _score(episode: Episode) -> Score:
    where, goal = episode.state.get("where"), episode.task.data.get("goal")
    if not isinstance(where, dict) or not isinstance(goal, dict):
        raise GraderError(
            f"episode {episode.id} holds no state of the storeroom world", episode=episode.id
        )
    if episode.failure is not None and episode.failure.reason not in AGENT_REASONS:
        raise GraderError(
            f"episode {episode.id} ended by {episode.failure.reason}, which is never scored",
            episode=episode.id,
        )
    thing, bin_ = str(goal["thing"]), f"bin:{goal['room']}"
    if where[thing] == bin_:
        return Score(value=1.0, success=True, source=_SOURCE)
    feedback = f"wanted the {thing} in {bin_}, but it ended in {where[thing]}"
    if not episode.state.get("open"):
        feedback += "; the chest was never opened"
    return Score(value=0.0, success=False, source=_SOURCE, feedback=feedback)


def _split(task: Task) -> Split:
    return "heldout" if int(task.id[-8:], 16) % 10 < _HELDOUT else "train"


def _house(random: Random, rooms: int) -> tuple[dict[str, Any], dict[str, Json]]:
    names = sorted(random.sample(ROOMS, rooms))
    doors: dict[str, list[str]] = {name: [] for name in names}
    joined = random.sample(names, rooms)
    for at, room in enumerate(joined[1:], start=1):  # a tree: one way between any two rooms
        other = random.choice(joined[:at])
        doors[room].append(other)
        doors[other].append(room)
    key, spare = random.sample(KEYS, 2)
    things = random.sample(THINGS, 4)
    where = dict.fromkeys(things[:2], CHEST)
    where.update({thing: random.choice(names) for thing in (key, spare, *things[2:])})
    house: dict[str, Any] = {
        "doors": {room: sorted(doors[room]) for room in names},
        "start": random.choice(names),
        "chest": random.choice(names),
        "key": key,
        "where": dict(sorted(where.items())),
    }
    return house, {"thing": things[0], "room": random.choice(names)}


def _task(house: dict[str, Any], goal: dict[str, Json], length: int) -> Task:
    return Task(
        id=content_id("storeroom", house, goal),
        prompt=(
            f"Put the {goal['thing']} into the bin of the {goal['room']}, "
            "and nothing else into a bin."
        ),
        family=f"{length} steps",
        data={"house": house, "goal": goal},
    )
