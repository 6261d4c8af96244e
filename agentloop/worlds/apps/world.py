"""The apps as a world: one call at a time, until `finish`.

In: a task whose `data` holds the tables at the start. Out: what each call gives, as JSON; a refused
call is a sentence that begins with `Error:`. The reset's seed decides nothing: apps tell things in
the order in which they have them. The episode ends with `finish` or after `CALLS_AT_MOST` calls;
success is read from the last snapshot (`tasks.Reached`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentloop.errors import UsageError
from agentloop.records import Json, Observation, Task, ToolCall, ToolSpec
from agentloop.worlds.apps import home, office
from agentloop.worlds.apps.calls import CALLS, Refused, Tables, call, perform
from agentloop.worlds.apps.goals import changed

__all__ = ["CALLS_AT_MOST", "Apps", "home", "office"]

CALLS_AT_MOST = 60
"""Calls until the episode ends by itself; the longest expert makes 12."""


@call
def finish(tables: Tables, answer: str = "") -> Json:
    """End the task, with the answer if it asks for one."""
    del tables, answer  # `Apps.value` keeps it
    return None


class Apps:
    """The world; satisfies `World`, `Snapshots` and `Actions`.

    State: `tables`, `calls` (how many were made), `done`, `answer`, and `effects`: for each call
    that changed something its name and the `table/id`s it changed (`answer`, for an answer).
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}

    def reset(self, task: Task, seed: int) -> Observation:
        """Put the apps as the task has them. Raises `UsageError` when it has none."""
        start = task.data.get("start")
        if not isinstance(start, dict):
            raise UsageError(f"task `{task.id}` has no `start`; make tasks with AppsTasks")
        tables = json.loads(json.dumps(start))
        self._state = {"tables": tables, "calls": 0, "done": False, "answer": None, "effects": []}
        return Observation(text="The apps are calendar, contacts, files, messages, notes and shop.")

    def act(self, call: ToolCall) -> Observation:
        """One call; see `value` for the same without text around it."""
        try:
            text = json.dumps(self.value(call.name, call.arguments))
        except Refused as error:
            text = f"Error: {error}"
        return Observation(text=text, done=self._state["done"])

    def value(self, name: str, arguments: Mapping[str, Any]) -> Json:
        """What a call gives. Raises `Refused`; the call counts all the same."""
        state = self._state
        if state["done"]:
            raise Refused("it is over; nothing happens any more")
        state["calls"] += 1
        before = json.loads(json.dumps(state["tables"]))
        try:
            given = perform(state["tables"], name, arguments)
            effect = sorted(changed(before, state["tables"]))
            if name == "finish":
                state["done"], state["answer"] = True, arguments.get("answer", "")
                effect = ["answer"] if state["answer"] else []
            if effect:
                state["effects"].append([name, effect])
        finally:
            state["done"] = state["done"] or state["calls"] >= CALLS_AT_MOST
        copy: Json = json.loads(json.dumps(given))  # what a caller is told is not the state itself
        return copy

    def tools(self) -> Sequence[ToolSpec]:
        """All calls."""
        return [each.spec for each in CALLS.values()]

    def effects(self) -> Sequence[tuple[str, Sequence[str]]]:
        """As in the state."""
        return [(name, changed) for name, changed in self._state["effects"]]

    def done(self) -> bool:
        """Whether the episode is over."""
        return bool(self._state["done"])

    def snapshot(self) -> dict[str, Json]:
        """The whole state as JSON."""
        copy: dict[str, Json] = json.loads(json.dumps(self._state))
        return copy

    def restore(self, state: dict[str, Json]) -> None:
        """Continue from a snapshot."""
        self._state = json.loads(json.dumps(state))
