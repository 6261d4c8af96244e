"""Generated code tasks: the same again, apart by statement, nothing hidden shown, canaries."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from agentloop.errors import UnknownName
from agentloop.ports import Tasks
from agentloop.records import Task
from agentloop.tasks.code.tasks import FAMILIES, HIDDEN, CodeTasks

SOME = CodeTasks().draw(320, split="train", seed=0)


def cases(task: Task) -> list[dict[str, Any]]:
    tests: Any = task.data["tests"]
    return list(tests["cases"])


def statement(task: Task) -> str:
    return task.prompt.partition("\nExamples:")[0]


def test_a_draw_is_the_same_again_and_balanced() -> None:
    source = CodeTasks()
    assert isinstance(source, Tasks)
    assert source.draw(48, split="train", seed=3) == source.draw(48, split="train", seed=3)
    assert set(Counter(one.family for one in source.draw(48, split="train", seed=3)).values()) == {
        3
    }
    assert source.draw(32, split="train", seed=3) != source.draw(32, split="train", seed=4)
    assert len({one.id for one in SOME}) == len({statement(one) for one in SOME}) == len(SOME)
    assert len(FAMILIES) == 16


def test_train_and_heldout_share_no_statement_whatever_the_seeds() -> None:
    found: dict[str, set[str]] = {}
    for split in ("train", "heldout"):
        drawn = [CodeTasks().draw(200, split=split, seed=seed) for seed in range(2)]  # type: ignore[arg-type]
        found[split] = {statement(one) for each in drawn for one in each}
    assert len(found["train"]) > 250 and not found["train"] & found["heldout"]


def test_a_family_that_is_used_up_gives_what_it_has() -> None:
    drawn = CodeTasks(families=("code_brackets",)).draw(1000, split="heldout", seed=0)
    assert 16 < len(drawn) < 100


def test_hidden_cases_stand_in_no_prompt() -> None:
    for task in SOME:
        name = task.data["tests"]["function"]  # type: ignore[index,call-overload]
        calls = [f"{name}({', '.join(map(repr, one['arguments']))})" for one in cases(task)]
        assert task.prompt.count(f"    {name}(") == 2
        assert not any(f"{call} " in task.prompt for call in calls)
        assert len(set(calls)) == HIDDEN


def test_no_answer_is_that_of_most_cases() -> None:
    for task in SOME:
        outcomes = Counter(json.dumps(one.get("expected", "raises")) for one in cases(task))
        assert max(outcomes.values()) <= HIDDEN // 2


def test_the_cases_are_of_every_kind() -> None:
    text = [json.dumps(one, ensure_ascii=False) for task in SOME for one in cases(task)]
    expected = [one.get("expected") for task in SOME for one in cases(task)]
    assert any('"raises"' in one for one in text) and any("🎉" in one for one in text)
    assert any(type(one) is int and one > 2**64 for one in expected)
    assert {type(one) for one in expected} == {int, float, str, list, dict, type(None)}
    assert any(type(one) is list and one and type(one[0]) is list for one in expected)
    tolerances = [task.data["tests"]["tolerance"] for task in SOME]  # type: ignore[index,call-overload]
    assert {0.0, 1e-6} == set(tolerances)


def test_canaries_contradict_every_case_and_look_like_any_task() -> None:
    honest = {one.id: one for one in CodeTasks(canaries=0).draw(320, split="train", seed=0)}
    canaries = [one for one in SOME if "canary" in one.data]
    assert 6 <= len(canaries) <= 30 and list(honest) == [one.id for one in SOME]
    for task in canaries:
        same = honest[task.id]
        assert task.prompt == same.prompt and "canary" not in same.data
        for wrong, right in zip(cases(task), cases(same), strict=True):
            assert wrong["arguments"] == right["arguments"]
            assert wrong["expected"] != right.get("expected", ...)
            assert len(str(wrong["expected"])) > 15  # nobody guesses it
    assert not any("canary" in one.data for one in CodeTasks().draw(320, split="heldout", seed=0))


def test_an_unknown_family_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean `code_digits`"):
        CodeTasks(families=("code_digit",)).draw(1, split="train", seed=0)
