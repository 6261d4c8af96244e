"""A small house to act in: fetch the key, open the chest, bring one thing to one bin.

In: a task made by `StoreroomTasks`, whose `data` holds the house. Out: observations in plain
English. An oracle needs 5 to 8 actions (`plan`). The reset's seed only decides in which order
things are told; the house is the task's. The episode ends when anything falls into any bin (right
or wrong looks the same) or after `MOVES` actions; success is read from the last snapshot.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from agentloop.errors import UsageError
from agentloop.records import Json, Observation, Task, ToolCall, ToolSpec

MOVES = 16
"""Actions until the episode ends by itself: twice what the longest task needs."""
ROOMS = ("attic", "cellar", "hall", "kitchen", "library", "workshop")
KEYS = ("brass key", "iron key", "silver key")
CHEST, BIN, BAG = "chest", "bin", "bag"


def _spec(name: str, description: str, **parameters: str) -> ToolSpec:
    properties: dict[str, Json] = {
        key: {"type": "string", "description": text} for key, text in parameters.items()
    }
    return ToolSpec(
        name=name,
        description=description,
        parameters={
            "type": "object", "properties": properties, "required": list(parameters),
            "additionalProperties": False,
        },
    )  # fmt: skip


TOOLS = (
    _spec("look", "Tell where you are, what is here and what you carry."),
    _spec("go", "Walk through a door to a room next to this one.", room="name of the room"),
    _spec("take", "Pick up a thing that lies here or in an open chest here.", thing="its name"),
    _spec("use", "Use a thing you carry on something here.", thing="its name", target="on what"),
    _spec("put", "Put a thing you carry into the bin of this room.", thing="its name"),
)


class Storeroom:
    """The world; satisfies `World`, `Snapshots` and `Actions`.

    State: `house` (`doors`, `key`: the one that fits, `chest`: its room), `at`, `where` (thing ->
    room, `chest`, `bag` or `bin:<room>`), `open`, `moves`, `done`, `order` (seed of the telling).
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}

    def reset(self, task: Task, seed: int) -> Observation:
        """Stand at the start. Raises `UsageError` when the task holds no house."""
        house = task.data.get("house")
        if not isinstance(house, dict):
            raise UsageError(f"task `{task.id}` has no `house`; make tasks with StoreroomTasks")
        house = json.loads(json.dumps(house))
        self._state = {
            "house": {name: house[name] for name in ("doors", "key", "chest")},
            "at": house["start"], "where": house["where"], "open": False,
            "moves": 0, "done": False, "order": seed,
        }  # fmt: skip
        return Observation(text=f"{self._map()} {self._view()}")

    def act(self, call: ToolCall) -> Observation:
        """One action; a wrong one costs a move and says why it failed."""
        state = self._state
        if state["done"]:
            return Observation(text="It is over; nothing happens any more.", done=True)
        state["moves"] += 1
        text = self._perform(call)
        if state["moves"] >= MOVES and not state["done"]:
            state["done"] = True
            text += " The day is over."
        return Observation(text=text, done=state["done"])

    def tools(self) -> Sequence[ToolSpec]:
        """The five actions."""
        return TOOLS

    def snapshot(self) -> dict[str, Json]:
        """The whole state as JSON."""
        copy: dict[str, Json] = json.loads(json.dumps(self._state))
        return copy

    def restore(self, state: dict[str, Json]) -> None:
        """Continue from a snapshot."""
        self._state = json.loads(json.dumps(state))

    def _perform(self, call: ToolCall) -> str:
        actions: dict[str, Callable[..., str]] = {
            "look": self._view, "go": self._go, "take": self._take, "use": self._use,
            "put": self._put,
        }  # fmt: skip
        spec = next((spec for spec in TOOLS if spec.name == call.name), None)
        if spec is None:
            return f"There is no action `{call.name}`; there are {', '.join(sorted(actions))}."
        required = spec.parameters["required"]
        wanted = sorted(map(str, required)) if isinstance(required, list) else []
        given = call.arguments
        if sorted(given) != wanted or not all(isinstance(text, str) for text in given.values()):
            return f"`{call.name}` takes {' and '.join(map(str, wanted)) or 'nothing'}, as text."
        return actions[call.name](**{name: _name(str(text)) for name, text in given.items()})

    def _go(self, room: str) -> str:
        if room not in self._state["house"]["doors"][self._state["at"]]:
            return f"No door leads from the {self._state['at']} to `{room}`."
        self._state["at"] = room
        return self._view()

    def _take(self, thing: str) -> str:
        if thing not in self._within_reach():
            return f"You cannot reach a `{thing}` here."
        self._state["where"][thing] = BAG
        return f"You take the {thing}."

    def _use(self, thing: str, target: str) -> str:
        state = self._state
        if state["where"].get(thing) != BAG:
            return f"You carry no `{thing}`."
        if target != CHEST or state["at"] != state["house"]["chest"]:
            return f"There is no `{target}` here to use it on."
        if state["open"]:
            return "The chest is open already."
        if thing != state["house"]["key"]:
            return f"The {thing} does not fit the chest."
        state["open"] = True
        return f"The chest opens. In it: {self._told(self._inside())}."

    def _put(self, thing: str) -> str:
        if self._state["where"].get(thing) != BAG:
            return f"You carry no `{thing}`."
        self._state["where"][thing] = f"{BIN}:{self._state['at']}"
        self._state["done"] = True
        return f"The {thing} drops into the bin of the {self._state['at']} and the lid locks."

    def _within_reach(self) -> list[str]:
        where, at = self._state["where"], self._state["at"]
        here = [thing for thing, place in where.items() if place == at]
        return here + (self._inside() if self._state["open"] else [])

    def _inside(self) -> list[str]:
        if self._state["at"] != self._state["house"]["chest"]:
            return []
        return [thing for thing, place in self._state["where"].items() if place == CHEST]

    def _view(self) -> str:
        state = self._state
        at, where = state["at"], state["where"]
        here = [thing for thing, place in where.items() if place == at]
        doors = self._told(state["house"]["doors"][at])
        parts = [f"You are in the {at}.", f"Doors lead to: {doors}."]
        if at == state["house"]["chest"]:
            parts.append(
                f"An open chest holds: {self._told(self._inside())}."
                if state["open"]
                else "A locked chest stands here."
            )
        parts.append(f"Here: {self._told([*here, BIN])}.")
        parts.append(f"You carry: {self._told([t for t, place in where.items() if place == BAG])}.")
        return " ".join(parts)

    def _map(self) -> str:
        house, where = self._state["house"], self._state["where"]
        doors: dict[str, list[str]] = house["doors"]
        ways = [f"from the {a} to the {b}" for a in doors for b in doors[a] if a < b]
        lying = [f"the {t} is in the {place}" for t, place in where.items() if place in doors]
        shut = [thing for thing, place in where.items() if place == CHEST]
        return (
            f"A note says: doors lead {self._told(ways)}. The chest is in the {house['chest']} "
            f"and opens with the {house['key']}; in it: {self._told(shut)}. "
            f"Elsewhere, {self._told(lying)}. Each room has a bin; the first thing put into any "
            "bin ends the day."
        )

    def _told(self, things: Sequence[str]) -> str:
        """A list in words, in the order that the reset's seed decides."""
        order = sorted(things)
        Random(f"{self._state['order']}:{'|'.join(order)}").shuffle(order)
        return ", ".join(order) or "nothing"


def plan(task: Task) -> list[ToolCall]:
    """The shortest way to solve `task`: walk to the key, to the chest, to the bin."""
    return [
        ToolCall(id=f"plan-{at}", name=name, arguments=given)
        for at, (name, given) in enumerate(steps(task.data["house"], task.data["goal"]))
    ]


def steps(house: Any, goal: Any) -> list[tuple[str, dict[str, Json]]]:
    """The same as (action, arguments), of a house that is not a task yet."""
    key, chest = house["key"], house["chest"]
    lies = house["where"][key]
    return [
        *_walk(house["doors"], house["start"], lies), ("take", {"thing": key}),
        *_walk(house["doors"], lies, chest), ("use", {"thing": key, "target": CHEST}),
        ("take", {"thing": goal["thing"]}), *_walk(house["doors"], chest, goal["room"]),
        ("put", {"thing": goal["thing"]}),
    ]  # fmt: skip


def _walk(doors: dict[str, list[str]], start: str, end: str) -> list[tuple[str, dict[str, Json]]]:
    before = {start: start}
    queue = deque([start])
    while queue:
        at = queue.popleft()
        for room in doors[at]:
            if room not in before:
                before[room] = at
                queue.append(room)
    rooms: list[str] = []
    while end != start:
        rooms.append(end)
        end = before[end]
    return [("go", {"room": room}) for room in reversed(rooms)]


def _name(text: str) -> str:
    """`The Kitchen ` means `kitchen`."""
    return " ".join(text.lower().split()).removeprefix("the ")[:60]
