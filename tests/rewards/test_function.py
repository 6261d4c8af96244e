"""A user's grader: what it may give, and that its faults are never a 0."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from grading_fixtures import episode, grade

from agentloop.errors import BudgetReached, GraderError, UnknownName, UsageError
from agentloop.ports import Reward
from agentloop.rewards.function import Function

GRADERS = """
import asyncio, math, time
from agentloop.errors import BudgetReached
from agentloop.records import Score, Task

def grade(answer: str, task: Task) -> float:
    return 1.0 if answer == str(task.expected) else 0.25

async def later(answer, task):
    await asyncio.sleep(0)
    return answer == "yes"

def full(answer, task):
    return Score(value=0.5, success=True, source="", feedback="fine", parts={"a": 0.5})

def raises(answer, task):
    raise RuntimeError("boom")

def stops(answer, task):
    return next(iter([]))

def hangs(answer, task):
    time.sleep(30)

def broke(answer, task):
    raise BudgetReached("spent")

def bad_score(answer, task):
    return Score(value=3.0, success=True, source="x")

constant = 3
nothing = lambda answer, task: None
text = lambda answer, task: "1"
nan = lambda answer, task: math.nan
large = lambda answer, task: 1.01
negative = lambda answer, task: -0.1
"""


@pytest.fixture
def base(tmp_path: Path) -> str:
    (tmp_path / "grader.py").write_text(GRADERS, "utf-8")
    return str(tmp_path)


def test_numbers_booleans_scores_sync_and_async(base: str) -> None:
    reward = Function(grade="./grader.py:grade", base=base)
    assert isinstance(reward, Reward)
    right, wrong = grade(reward, episode(" 4 ", 4), episode("5", 4))
    assert (right.value, right.success, right.source) == (1.0, True, "./grader.py:grade")
    assert (wrong.value, wrong.success) == (0.25, False)
    assert wrong.feedback == "5 was graded 0.25; expected 4"
    yes, no = grade(Function(grade="./grader.py:later", base=base), episode("yes"), episode("no"))
    assert (yes.value, yes.success, no.value, no.success) == (1.0, True, 0.0, False)
    (full,) = grade(Function(grade="./grader.py:full", base=base), episode("x"))
    assert (full.value, full.success, full.source) == (0.5, True, "./grader.py:full")
    assert full.feedback == "fine" and full.parts == {"a": 0.5}


def test_an_agent_without_an_answer_is_not_sent_to_the_grader(base: str) -> None:
    reward = Function(grade="./grader.py:raises", base=base)
    scores = grade(reward, episode(None), episode("x", reason="token_limit"))
    assert [score.value for score in scores] == [0.0, 0.0]
    assert "token_limit" in scores[1].feedback


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("raises", "raised RuntimeError on episode ep-1: boom"),
        ("stops", "raised RuntimeError on episode ep-1: StopIteration"),
        ("nothing", "gave None for episode ep-1"),
        ("text", "gave '1' for episode ep-1"),
        ("nan", "gave nan for episode ep-1"),
        ("large", "gave 1.01 for episode ep-1"),
        ("negative", "gave -0.1 for episode ep-1"),
        ("bad_score", "gave 3.0 for episode ep-1"),
    ],
)
def test_a_faulty_grader_is_an_error_that_names_file_and_episode(
    base: str, name: str, says: str
) -> None:
    with pytest.raises(GraderError, match=says) as caught:
        grade(Function(grade=f"./grader.py:{name}", base=base), episode("x"))
    assert f"./grader.py:{name}" in str(caught.value)
    assert caught.value.episode == "ep-1"


def test_a_grader_that_hangs_is_given_up(base: str) -> None:
    started = time.monotonic()
    with pytest.raises(GraderError, match=r"did not end within 0.2 s on episode ep-1"):
        grade(Function(grade="./grader.py:hangs", base=base, seconds=0.2), episode("x"))
    assert time.monotonic() - started < 5


def test_what_is_no_fault_of_the_grader_passes_through(base: str) -> None:
    with pytest.raises(BudgetReached):
        grade(Function(grade="./grader.py:broke", base=base), episode("x"))


def test_a_grader_that_cannot_be_loaded_is_a_usage_error(base: str) -> None:
    for reference, error, says in (
        ("./grader.py:grad", UnknownName, "did you mean `grade`"),
        ("./graders.py:grade", UsageError, "does not exist"),
        ("./grader.py:constant", UsageError, "is no function"),
        ("grade", UsageError, "is not a reference"),
    ):
        with pytest.raises(error, match=says):
            grade(Function(grade=reference, base=base), episode("x"))
    with pytest.raises(UsageError, match="seconds"):
        grade(Function(grade="./grader.py:grade", base=base, seconds=0), episode("x"))
