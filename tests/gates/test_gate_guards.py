"""What a challenger may not do however well it scores, and what it may."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from gate_fixtures import RIGHT, WRONG, episode, numbered, spoken

from agentloop.gates.guards import Guards, measure, probed
from agentloop.gates.holdout import Holdout
from agentloop.gates.sequential import Sequential
from agentloop.records import Episode, Message, Node, Task, ToolCall, Trajectory, Usage, Verdict

TASKS = numbered(20)


def pairs(
    before: Callable[[Task], Episode], after: Callable[[Task], Episode], tasks: Sequence[Task]
) -> list[tuple[Episode, Episode]]:
    return [(before(task), after(task)) for task in tasks]


def short(task: Task) -> Episode:
    return spoken(task, True, f"Answer: {task.id}")


def objection(
    after: Callable[[Task], Episode], *, before: Callable[[Task], Episode] = short,
    guards: Guards = Guards(), tasks: Sequence[Task] = TASKS,
) -> str:  # fmt: skip
    return measure(guards, pairs(before, after, tasks))[1]


def test_nothing_to_object() -> None:
    figures, sentence = measure(Guards(), pairs(short, short, TASKS))
    assert sentence == ""
    assert figures["length"] == figures["cost"] == {"pairs": 20, "ratio": 1.0}
    assert figures["diversity"]["challenger"] == pytest.approx(math.log2(20), abs=1e-3)
    assert measure(Guards(), [])[1] == ""


def test_twice_the_length_is_refused_where_both_succeed() -> None:
    def long(task: Task) -> Episode:
        return spoken(task, True, f"Answer: {task.id}", tokens=100)

    assert "length is 2.00 times" in objection(long)
    assert objection(long, guards=Guards(length=None)) == objection(long, guards=Guards(length=2.1))
    assert objection(long, tasks=TASKS[:4]) == ""  # too few to tell
    wrong = replace(short(TASKS[0]), score=spoken(TASKS[0], False, "no").score)
    assert objection(long, before=lambda task: replace(wrong, task=task)) == ""


def test_a_tool_where_there_was_a_guess_is_not_length() -> None:
    def with_tool(task: Task) -> Episode:
        used = ToolCall(id="1", name="python", arguments={})
        call = Message(role="assistant", content="", tool_calls=(used,))
        told = spoken(task, True, f"Answer: {task.id}", tokens=150)
        nodes = (
            Node(parent=None, message=call, sampled=True), *told.trajectories[0].nodes,
        )  # fmt: skip
        return replace(told, trajectories=(Trajectory(nodes=nodes),))

    assert objection(with_tool) == ""
    assert "length is 3.00" in objection(lambda t: replace(short(t), usage=_used(150)))


def _used(tokens: int) -> Usage:
    return Usage(prompt_tokens=100, completion_tokens=tokens)


def test_cost_is_dollars_where_calls_have_a_price() -> None:
    def at(usd: float) -> Callable[[Task], Episode]:
        used = Usage(prompt_tokens=100, completion_tokens=50, usd=usd)
        return lambda task: replace(short(task), usage=used)

    assert "cost is 5.00 times" in objection(at(0.05), before=at(0.01))
    assert objection(at(0.05)) == ""  # one side has no price: tokens
    many = Usage(prompt_tokens=900, completion_tokens=50)
    assert "cost is 6.33 times" in objection(lambda task: replace(short(task), usage=many))


def test_latency_is_seconds() -> None:
    assert "latency is 9.00" in objection(lambda task: replace(short(task), seconds=9.0))


def test_one_answer_for_all_is_a_collapse_unless_the_tasks_expect_it() -> None:
    same = lambda task: spoken(task, True, "42")  # noqa: E731
    assert "collapsed to 0.0 bits" in objection(same)
    either = [replace(task, expected=["yes", "no"][at % 2]) for at, task in enumerate(TASKS)]
    plain = lambda task: spoken(task, True, str(task.expected))  # noqa: E731
    assert objection(plain, tasks=either) == ""  # the champion wordy, the challenger to the point
    assert "collapsed" in objection(same, tasks=either)


def test_babble_is_refused() -> None:
    empty = lambda task: spoken(task, True, " \n", answer=task.id)  # noqa: E731
    assert "100% of its outputs are empty" in objection(empty)
    assert "repeat themselves" in objection(lambda t: spoken(t, True, "the " * 200, answer=t.id))
    prose = "".join(f"{at} squared is {at * at}, as one can see. " for at in range(40))
    assert objection(lambda task: spoken(task, True, prose, answer=task.id)) == ""
    assert objection(empty, before=empty) == ""  # no worse than before


def test_a_log_prob_that_is_no_number_is_refused() -> None:
    assert "no finite log-probs" in objection(lambda t: spoken(t, True, t.id, logprob=math.nan))


def probes(*marks: tuple[str, str, bool]) -> tuple[Any, str]:
    """(champion, challenger, impossible) per probe."""
    sides: tuple[list[Episode], list[Episode]] = ([], [])
    for at, (before, after, impossible) in enumerate(marks):
        task = Task(id=f"p{at}", prompt="?", data={"expect": "fail"} if impossible else {})
        sides[0].append(episode(task, "old", before))
        sides[1].append(episode(task, "new", after))
    return probed(*sides)


def test_probes() -> None:
    figures, sentence = probes((RIGHT, RIGHT, False), (WRONG, WRONG, False), (WRONG, WRONG, True))
    assert sentence == "" and figures == {"impossible": 1, "fooled": [], "due": 1, "lost": []}
    lost = probes((RIGHT, WRONG, False), (RIGHT, "x", False), (RIGHT, RIGHT, False))[1]
    assert lost.startswith("it fails 2 of 3 probes") and "`p0`" in lost
    fooled = probes((RIGHT, RIGHT, False), (RIGHT, RIGHT, True))[1]
    assert "passed 1 of 1 impossible" in fooled and "`p1`" in fooled
    assert probes(("x", WRONG, False))[1] == ""


@pytest.mark.parametrize("gate", [Holdout(), Sequential()])
def test_a_gate_that_would_pass_refuses_with_the_guard_s_sentence(gate: Any) -> None:
    tasks = numbered(64)

    def told(bundle: str, task: Task) -> Episode:
        if bundle == "old":
            return spoken(task, int(task.id[1:]) % 3 == 0, f"a{task.id}")
        return spoken(task, True, f"b{task.id}", tokens=200)

    async def evaluate(bundle: str, some: Sequence[Task]) -> list[Episode]:
        return [told(bundle, task) for task in some]

    verdict: Verdict = asyncio.run(
        gate.judge("x", champion="old", challenger="new", tasks=tasks, evaluate=evaluate)
    )
    assert not verdict.passed and verdict.stopped == "refused"
    assert verdict.reason.startswith("refused: its length is 4.00 times")
    assert verdict.guards["length"]["ratio"] == 4.0  # type: ignore[index, call-overload]
    off = replace(gate, guards=Guards(length=None))
    verdict = asyncio.run(
        off.judge("x", champion="old", challenger="new", tasks=tasks, evaluate=evaluate)
    )
    assert verdict.passed
