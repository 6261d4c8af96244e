"""Whether a world keeps the contract of `ports.World`; use it to test one of your own.

    assert check_world(MyWorld, task, calls) == []

In: a function that makes a world, a task, and calls that lead through it (good or bad ones). Out:
the problems found, in words. The decision worth knowing: everything is checked by acting, from the
outside, so a world may keep its state as it likes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence

from agentloop.ports import Snapshots, World
from agentloop.records import Json, Observation, Task, ToolCall
from agentloop.trajectories.codec import to_json

_SEED = 7
_GRADING = re.compile(
    r"\b(rewards?|scor(?:e|es|ed|ing)|grad(?:e|ed|er|ing)|success(?:ful|fully)?)\b", re.I
)
_UNKNOWN = ToolCall(id="conformance", name="no_such_action", arguments={"x": 1})


def check_world(
    make_world: Callable[[], World], task: Task, calls: Sequence[ToolCall], *, seed: int = _SEED
) -> list[str]:
    """Problems of the worlds that `make_world` makes; empty when they keep the contract.

    Checks: the same seed gives the same transcript, in a fresh world and after a reset; restoring
    any snapshot equals replaying up to it; no observation holds the task's answer or speaks of
    grading; an unknown or malformed call is an observation; what is done stays done.
    """
    checks: tuple[Callable[..., Iterator[str]], ...] = (
        _repeatable, _restorable, _silent_about_grading, _patient, _final
    )  # fmt: skip
    problems: list[str] = []
    for check in checks:
        try:
            problems.extend(check(make_world, task, list(calls), seed))
        except Exception as error:  # a world may raise anything: that is the finding
            problems.append(f"{check.__name__.strip('_')}: raised {type(error).__name__}: {error}")
    return problems


def transcript(world: World, task: Task, calls: Sequence[ToolCall], seed: int) -> list[Observation]:
    """The observations of `calls` after a reset, the first one included."""
    return [world.reset(task, seed), *(world.act(call) for call in calls)]


_Make = Callable[[], World]


def _repeatable(make: _Make, task: Task, calls: list[ToolCall], seed: int) -> Iterator[str]:
    world = make()
    first = transcript(world, task, calls, seed)
    for name, other in (("a fresh world", make()), ("the same world after reset", world)):
        again = transcript(other, task, calls, seed)
        pairs = zip(first, again, strict=True)
        if (at := next((i for i, (a, b) in enumerate(pairs) if a != b), None)) is not None:
            yield f"same seed, other transcript: {name} differs at observation {at}"


def _restorable(make: _Make, task: Task, calls: list[ToolCall], seed: int) -> Iterator[str]:
    world = make()
    if not isinstance(world, Snapshots):
        return
    wanted = transcript(make(), task, calls, seed)
    states: list[str] = []
    for at in range(len(calls) + 1):
        if at == 0:
            world.reset(task, seed)
        else:
            world.act(calls[at - 1])
        states.append(json.dumps(world.snapshot(), allow_nan=False))  # a copy, and JSON only
    for at, state in enumerate(states):
        other = make()
        assert isinstance(other, Snapshots)
        other.restore(json.loads(state))
        if json.dumps(other.snapshot()) != state:
            yield f"restore, then snapshot gives another state after {at} calls"
        if [other.act(call) for call in calls[at:]] != wanted[at + 1 :]:
            yield f"restore differs from replay after {at} calls"


def _silent_about_grading(
    make: _Make, task: Task, calls: list[ToolCall], seed: int
) -> Iterator[str]:  # fmt: skip
    for at, observation in enumerate(transcript(make(), task, [*calls, _UNKNOWN], seed)):
        text = json.dumps(to_json(observation), ensure_ascii=False)
        if (word := _GRADING.search(text)) is not None:
            yield f"observation {at} speaks of grading: `{word.group()}`"
        for leaf in _leaves(task.expected):
            if re.search(rf"(?<!\w){re.escape(leaf)}(?!\w)", text):
                yield f"observation {at} holds the expected answer `{leaf}`"


def _patient(make: _Make, task: Task, calls: list[ToolCall], seed: int) -> Iterator[str]:
    world = make()
    world.reset(task, seed)
    odd = [_UNKNOWN]
    for call in {call.name: call for call in calls}.values():
        odd.append(ToolCall(id="empty", name=call.name, arguments={}))
        wrong: dict[str, Json] = {key: [None, {"a": 0}] for key in call.arguments}
        odd.append(ToolCall(id="wrong", name=call.name, arguments={**wrong, "surplus": 1.5}))
    for call in odd:
        observation = world.act(call)
        if not isinstance(observation, Observation):
            yield f"the call {call.name}({call.arguments}) gave no observation"
        elif not observation.text.strip() and observation.artifact is None:
            yield f"the call {call.name}({call.arguments}) was answered by nothing"


def _final(make: _Make, task: Task, calls: list[ToolCall], seed: int) -> Iterator[str]:
    world = make()
    seen = transcript(world, task, [*calls, *calls, _UNKNOWN], seed)
    done = [observation.done for observation in seen]
    if True in done and not all(done[done.index(True) :]):
        yield "an episode that was done went on"


def _leaves(value: Json) -> Iterator[str]:
    """Texts and numbers in `value` that are long enough to be told from chance."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif value is not None and not isinstance(value, bool):
        text = str(value).strip()
        if len(text) > 1:
            yield text
