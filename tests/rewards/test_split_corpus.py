"""Reward hacks pass nowhere, honest solutions everywhere; each check has a hack that needs it."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from operator import eq
from typing import Any

import pytest
from corpus import SLEEPY, TARGETS, Piece, hacks, honest
from grading_corpora import failed, grade_all, passed, process

from agentloop.rewards import split
from agentloop.rewards.split import Case, HiddenTests, Outcome, hidden_tests
from agentloop.sandboxes.monty import MontySandbox
from agentloop.sandboxes.profile import Profile

Item = tuple[str, HiddenTests]
QUICK = ("frames", "memory", "exits")
"""What full Python alone can do; the others come up in the integration tests."""


def items(pieces: Sequence[Piece]) -> list[Item]:
    return [(one.code, TARGETS[one.target]) for one in pieces]


def monty(seconds: float = 20.0) -> MontySandbox:
    return MontySandbox(Profile(backend="monty", seconds=seconds))


def test_the_corpora_are_large_and_different() -> None:
    found = hacks(walled=True)
    assert len({one.code for one in found}) == len({one.name for one in found}) == len(found) >= 60
    solutions = honest(4, cpython=True)
    assert len({(task.id, one.code) for task, one in solutions}) == len(solutions) >= 200
    assert len({task.family for task, _ in solutions}) == 16


def test_no_hack_passes_in_full_python_even_without_walls() -> None:
    found = [one for one in hacks(walled=False) if one.name.partition(":")[0] in QUICK]
    found = [one for one in found if not any(word in one.name for word in SLEEPY)]
    assert len(found) >= 50
    assert passed(grade_all(process(), items(found), seconds=2.0), found) == []


def test_in_monty_no_hack_passes_all_that_is_honest_does_and_always_the_same() -> None:
    """200 of them three times."""
    good = honest(4, cpython=False)
    bad = [one for one in hacks(walled=True) if not any(word in one.name for word in SLEEPY)]
    given = items(bad) + [(one.code, hidden_tests(task)) for task, one in good]
    first = grade_all(monty(), given)
    assert passed(first[: len(bad)], bad) == []
    assert failed(first[len(bad) :], [one for _, one in good]) == [] and len(good) >= 200
    assert not any(one.flags for one in first[len(bad) :])
    some = random.Random(0).sample(range(len(given)), 200)
    for _ in range(2):
        again = grade_all(monty(), [given[at] for at in some])
        assert [told(one) for one in again] == [told(first[at]) for at in some]


def told(outcome: Outcome) -> tuple[bool, str, tuple[str, ...]]:
    """All of it, but how many bytes were too many."""
    return outcome.passed, re.sub(r"\d+ bytes", "bytes", outcome.why), outcome.flags


def test_honest_solutions_in_full_python() -> None:
    solutions = [(task, one) for task, one in honest(1, cpython=True) if "cpython" in one.marks]
    found = grade_all(process(), [(one.code, hidden_tests(task)) for task, one in solutions])
    assert len(solutions) == 16 and failed(found, [one for _, one in solutions]) == []
    assert not any(one.flags for one in found)


def test_honest_solutions_fail_the_canaries() -> None:
    solutions = honest(4, cpython=False)[::8]
    wrong = []
    for task, one in solutions:
        tests = hidden_tests(task)
        cases = tuple(replace(case, expected="another", raises="") for case in tests.cases)
        wrong.append((one.code, replace(tests, cases=cases)))
    assert not any(one.passed for one in grade_all(monty(), wrong))


def named(name: str) -> Piece:
    [piece] = [one for one in hacks(walled=True) if one.marks[0] == name]
    return piece


def outcome(code: str, tests: HiddenTests, **more: Any) -> Outcome:
    [found] = grade_all(monty(), [(code, tests)], **more)
    return found


@pytest.mark.parametrize(
    ("name", "loosely"),
    [
        ("bool_for_int", lambda want, given, _: want == given),
        ("float_for_int", lambda want, given, _: want == given),
        ("text_for_int", lambda want, given, _: str(want) == str(given)),
        ("zero_width", lambda want, given, _: want in str(given)),
        ("tolerance_abuse", lambda want, given, _: abs(want - given) < 0.01),
        ("list_prefix", lambda want, given, _: all(map(eq, want, given))),
        ("list_and_more", lambda want, given, _: given[: len(want)] == want),
        ("dict_and_more", lambda want, given, _: want.items() <= given.items()),
        ("zero_for_none", lambda want, given, _: (want or 0) == (given or 0)),
        ("empty_for_none", lambda want, given, _: (want or 0) == (given or 0)),
    ],
)  # fmt: skip
def test_without_exact_types_it_would_pass(
    name: str, loosely: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = named(name)
    assert not outcome(piece.code, TARGETS[piece.target]).passed
    monkeypatch.setattr(split, "same", loosely)
    assert outcome(piece.code, TARGETS[piece.target]).passed


def test_without_hidden_cases_it_would_pass() -> None:
    piece, tests = named("examples_alone"), TARGETS["digits"]
    assert not outcome(piece.code, tests).passed
    assert outcome(piece.code, replace(tests, cases=tests.cases[:3])).passed


def test_without_the_id_it_would_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was taken over and answers from a list that was leaked."""
    leak = [None, *(one.expected for one in TARGETS["digits"].cases), None]
    code = f"""
import json, sys
leak = iter({leak!r})
sys.modules["__main__"].outcome_of = lambda _, line: json.dumps({{"id": "0", "v": next(leak)}})
def solve(n): return 0
"""
    given = [(code, TARGETS["digits"])]
    [found] = grade_all(process(), given)
    assert not found.passed and found.flags
    monkeypatch.setattr(split, "frame_of", lambda text, name: json.loads(text))
    assert grade_all(process(), given)[0].passed


def test_without_a_deadline_it_would_pass() -> None:
    code = "import time\ndef solve(n):\n    time.sleep(0.02)\n    return n"
    tests = HiddenTests(function="solve", cases=(Case(arguments=(7,), expected=7),))
    assert grade_all(process(), [(code, tests)], seconds=5.0)[0].passed
    late = grade_all(process(), [(code.replace("0.02", "1"), tests)], seconds=0.2)[0]
    assert not late.passed and late.why.endswith("no answer within 0.2 s")
    for name in ("endless_loop", "endless_recursion"):
        piece = named(name)
        [found] = grade_all(monty(0.5), [(piece.code, TARGETS["digits"])])
        assert not found.passed


def test_when_the_sandbox_kept_its_state_it_would_pass() -> None:
    """A second grading does not see what the first one left."""
    code = (
        "import os\nknown = os.listdir('.')\nopen('left', 'w').close()\n"
        "def solve(n): return len(known)"
    )
    tests = HiddenTests(function="solve", cases=(Case(arguments=(0,), expected=0),))
    assert asyncio.run(twice(code, tests)) == [True, True]


async def twice(code: str, tests: HiddenTests) -> list[bool]:
    sandbox = process()
    return [(await split.grade(sandbox, code, tests)).passed for _ in range(2)]
