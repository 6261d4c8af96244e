"""Selection keeps successes, spreads them, and refuses what is held out."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agentloop.datasets.select import Selection, calls_tool, capped, distinct
from agentloop.errors import UsageError
from agentloop.records import Episode, Failure, Message, Node, Score, Task, ToolCall, Trajectory


def episode(
    name: str, task: str = "t", *, ids: tuple[int, ...] | None = None, value: float = 1.0
) -> Episode:
    said = Message(role="assistant", content=name)
    written = tuple(name.encode()) if ids is None else ids
    return Episode(
        id=name,
        task=Task(id=task, prompt=f"prompt of {task}"),
        bundle="b",
        purpose="collect",
        run="r",
        seed=0,
        trajectories=(
            Trajectory(nodes=(Node(parent=None, message=said, token_ids=written, sampled=True),)),
        ),
        score=Score(value=value, success=value > 0.5, source="s"),
    )


def names(episodes: list[Episode]) -> list[str]:
    return [each.id for each in episodes]


def test_only_scored_trainable_successes_are_kept() -> None:
    good = episode("good")
    others = [
        replace(good, id="wrong", score=Score(value=0.0, success=False, source="s")),
        replace(good, id="unscored", score=None),
        replace(good, id="infra", failure=Failure(reason="model_error", detail="")),
        replace(good, id="agent", failure=Failure(reason="turn_limit", detail="")),
        replace(good, id="locked", trajectories=(replace(good.trajectories[0], trainable=False),)),
        replace(good, id="empty", trajectories=(Trajectory(),)),
    ]
    assert names(Selection().choose([*others, good])) == ["good"]


def test_identical_completions_of_one_task_are_one() -> None:
    twins = [episode("a", ids=(1, 2)), episode("b", ids=(1, 2)), episode("c", "u", ids=(1, 2))]
    assert names(distinct(twins)) == ["a", "c"]


def test_caps_per_task_and_per_group() -> None:
    many = [episode(f"{task}{i}", task) for task in ("x", "y", "z") for i in range(5)]
    per_task = Selection(cap_per_task=2).choose(many)
    assert Counter(each.task.id for each in per_task) == {"x": 2, "y": 2, "z": 2}
    grouped = Selection(cap_per_group=2).choose(many, group=lambda each: each.task.id in "xy")
    assert Counter(each.task.id for each in grouped) == {"x": 1, "y": 1, "z": 2}


def test_the_better_score_is_kept() -> None:
    assert names(capped([episode("a", value=0.6), episode("b")], 1, key=lambda _: 0)) == ["b"]


@given(st.lists(st.integers(0, 4), max_size=25), st.integers(1, 4), st.randoms())
def test_a_cap_does_not_depend_on_order(
    tasks: list[int], limit: int, chance: random.Random
) -> None:
    given_ = [episode(f"e{i}", str(task)) for i, task in enumerate(tasks)]
    mixed = list(given_)
    chance.shuffle(mixed)

    def task_of(each: Episode) -> str:
        return each.task.id

    kept = capped(given_, limit, key=task_of)
    assert sorted(names(kept)) == sorted(names(capped(mixed, limit, key=task_of)))
    assert Counter(map(task_of, kept)) == {
        task: min(limit, n) for task, n in Counter(map(task_of, given_)).items()
    }


def test_tool_calls_can_be_required() -> None:
    plain = episode("plain")
    (spoken,) = plain.trajectories[0].nodes
    call = ToolCall(id="1", name="python", arguments={})
    caller = replace(
        plain,
        id="caller",
        trajectories=(
            Trajectory(
                nodes=(replace(spoken, message=replace(spoken.message, tool_calls=(call,))),)
            ),
        ),
    )
    assert calls_tool(caller) and not calls_tool(plain)
    assert names(Selection(require_tool_call=True).choose([plain, caller])) == ["caller"]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (replace(episode("e"), purpose="eval"), "evaluation"),
        (episode("e", "secret"), "held-out task `secret`"),
        (replace(episode("e"), task=Task(id="new", prompt=" prompt  of\nsecret ")), "held-out"),
    ],
)
def test_held_out_tasks_are_an_error(bad: Episode, says: str) -> None:
    held_out = [Task(id="secret", prompt="prompt of secret")]
    with pytest.raises(UsageError, match=says):
        Selection().choose([episode("fine"), bad], held_out=held_out)


def test_unknown_and_senseless_keys_are_refused() -> None:
    with pytest.raises(ValidationError):
        Selection(cap_per_task=0)
    with pytest.raises(ValidationError):
        Selection(cap=1)  # type: ignore[call-arg]
