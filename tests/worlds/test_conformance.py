"""The conformance suite must find what it claims to find: one broken world per clause."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from agentloop.records import Json, Observation, Task, ToolCall
from agentloop.worlds.conformance import check_world

TASK = Task(id="t", prompt="count to 3", expected="treasure")
CALLS = [ToolCall(id=str(i), name="step", arguments={"by": 1}) for i in range(4)]


class Counter:
    """Keeps the contract: counts to 3 and is done."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def reset(self, task: Task, seed: int) -> Observation:
        self.state = {"n": 0, "seed": seed}
        return Observation(text="at 0")

    def act(self, call: ToolCall) -> Observation:
        if call.name != "step" or call.arguments != {"by": 1}:
            return Observation(text="step takes by=1", done=self.state["n"] >= 3)
        self.state["n"] = min(3, self.state["n"] + 1)
        return Observation(text=f"at {self.state['n']}", done=self.state["n"] >= 3)

    def snapshot(self) -> dict[str, Json]:
        return dict(self.state)

    def restore(self, state: dict[str, Json]) -> None:
        self.state = dict(state)


_clock = itertools.count()


class Restless(Counter):
    def reset(self, task: Task, seed: int) -> Observation:
        super().reset(task, seed)
        return Observation(text=f"it is {next(_clock)} o'clock")


class Unclean(Counter):
    left = 0

    def act(self, call: ToolCall) -> Observation:
        self.left += 1
        seen = super().act(call)
        return Observation(text=f"{seen.text}, move {self.left}", done=seen.done)


class Forgetful(Counter):
    def restore(self, state: dict[str, Json]) -> None:
        self.state = {**state, "n": 0}


class Aliased(Counter):
    def snapshot(self) -> dict[str, Json]:
        return {"state": self.state, "kept": "x"}  # type: ignore[dict-item]

    def restore(self, state: dict[str, Json]) -> None:
        self.state = {"n": 0, "seed": 0}


class NotJson(Counter):
    def snapshot(self) -> dict[str, Json]:
        return {"n": {1, 2}}  # type: ignore[dict-item]


class Telling(Counter):
    def act(self, call: ToolCall) -> Observation:
        return Observation(text=f"{super().act(call).text}, your reward is 0.3")


class Leaking(Counter):
    def act(self, call: ToolCall) -> Observation:
        return Observation(text="dig for the treasure")


class Raising(Counter):
    def act(self, call: ToolCall) -> Observation:
        if call.name != "step":
            raise KeyError(call.name)
        return super().act(call)


class Mute(Counter):
    def act(self, call: ToolCall) -> Observation:
        seen = super().act(call)
        return seen if call.name == "step" else Observation(text="", done=seen.done)


class Undead(Counter):
    def act(self, call: ToolCall) -> Observation:
        return Observation(text="x", done=super().act(call).text == "at 2")


def test_a_good_world_has_no_problems() -> None:
    assert check_world(Counter, TASK, CALLS) == []
    assert check_world(Counter, TASK, []) == []


@pytest.mark.parametrize(
    ("world", "says"),
    [
        (Restless, "same seed, other transcript: a fresh world differs at observation 0"),
        (Unclean, "the same world after reset differs at observation 1"),
        (Forgetful, "restore differs from replay after 1 calls"),
        (Aliased, "restore, then snapshot gives another state"),
        (NotJson, "restorable: raised TypeError"),
        (Telling, "observation 1 speaks of grading: `reward`"),
        (Leaking, "observation 1 holds the expected answer `treasure`"),
        (Raising, "patient: raised KeyError"),
        (Mute, "the call no_such_action({'x': 1}) was answered by nothing"),
        (Undead, "an episode that was done went on"),
    ],
)
def test_each_clause_is_checked(world: Callable[[], Counter], says: str) -> None:
    problems = check_world(world, TASK, CALLS)
    assert any(says in problem for problem in problems), json.dumps(problems)
