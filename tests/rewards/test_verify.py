"""The verifiers: what is right, what is wrong and why, and what must neither hang nor run."""

from __future__ import annotations

import math
import time
from fractions import Fraction
from typing import Any

import pytest
from grading_fixtures import episode, grade, value
from hypothesis import given, settings
from hypothesis import strategies as st

from agentloop.errors import GraderError, MissingDependency, UsageError
from agentloop.ports import Reward
from agentloop.records import Json
from agentloop.rewards import verify
from agentloop.rewards.verify import DatasetScore, Exact, MathVerify, Numeric, Regex, last_number
from agentloop.tasks.reasoning_gym import ReasoningGym

ALL: list[Any] = [Exact(), Numeric(), Regex(), MathVerify(), DatasetScore()]


@pytest.mark.parametrize("reward", ALL, ids=lambda reward: type(reward).__name__)
def test_an_agent_that_failed_or_gave_nothing_scores_0_and_learns_why(reward: Any) -> None:
    assert isinstance(reward, Reward)
    failed, silent, blank = grade(
        reward, episode("4", 4, reason="turn_limit"), episode(None, 4), episode("  ", 4)
    )
    assert [s.value for s in (failed, silent, blank)] == [0, 0, 0]
    assert "turn_limit" in failed.feedback and "limit 6" in failed.feedback
    assert silent.feedback == blank.feedback == "no answer was given"
    assert failed.source == f"agentloop.rewards.verify:{type(reward).__name__}"


@pytest.mark.parametrize("reward", ALL, ids=lambda reward: type(reward).__name__)
def test_a_failure_of_the_infrastructure_is_never_scored(reward: Any) -> None:
    with pytest.raises(GraderError, match=r"ep-1.*model_error") as caught:
        grade(reward, episode("4", 4, reason="model_error"))
    assert caught.value.episode == "ep-1"


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("Paris", "paris", 1), ("  The\n answer. ", "the answer", 1), ('"12"', 12, 1), ("2", 2, 1),
        ("**yes**", "Yes", 1), ("½", "1⁄2", 1), ("true", True, 1), 
        ('{"b":1, "a":[2]}', {"a": [2], "b": 1}, 1),
        ("Rome", "paris", 0), ("5!", "5", 0), (".5", "5", 0), ("12", 1, 0), ("1", True, 0),
        ("[1,2]", [2, 1], 0), ("[" * 9000, [1], 0), ("-5", "5", 0), ("5.", ".5", 0),
    ],
)  # fmt: skip
def test_exact(answer: str, expected: Json, right: int) -> None:
    assert value(Exact(), answer, expected) == right


def test_feedback_names_both_sides_and_long_answers_are_not_read() -> None:
    (score,) = grade(Exact(), episode("7", 12))
    assert score.feedback == "expected 12, got 7"
    (score,) = grade(Exact(), episode("12 " * 5000, 12))
    assert score.value == 0 and "15000 characters" in score.feedback


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("The sum is 1,234.5 dollars", 1234.5, 1), ("x = -3", -3, 1), ("−3", -3, 1),
        ("1/3", "1/3", 1), ("2e3", 2000, 1), (".5", 0.5, 1), ("I had 3, then 4", 4, 1),
        ("0.33333334", "1/3", 1),
        ("1000000001", 1000000000, 1), ("3", 4, 0), ("1e999", 10, 0), ("1/0", 1, 0), ("4.1", 4, 0),
        ("9" * 5000, 9, 0), ("12 34", 1234, 0),
    ],
)  # fmt: skip
def test_numeric(answer: str, expected: Json, right: int) -> None:
    assert value(Numeric(), answer, expected) == right


def test_numeric_tolerance_and_its_errors() -> None:
    assert value(Numeric(tolerance=0.0), "9007199254740993", 9007199254740992) == 0
    assert value(Numeric(tolerance=0.1), "105", 100) == 1
    assert "has none" in grade(Numeric(), episode("no idea", 4))[0].feedback
    with pytest.raises(UsageError, match="`t-1` is 'four'; this grader needs a number"):
        value(Numeric(), "4", "four")
    for tolerance in (-1.0, math.nan, math.inf, 1.0):
        with pytest.raises(UsageError, match="tolerance"):
            value(Numeric(tolerance=tolerance), "4", 4)


@given(st.fractions() | st.integers().map(Fraction), st.text("abc .=", max_size=5))
def test_any_number_written_out_is_read_back(number: Fraction, before: str) -> None:
    assert last_number(f"{before} {number}") == number


@settings(max_examples=300)
@given(st.text("0123456789+-.,eE/ −½⁄x", max_size=60))
def test_no_text_breaks_the_number_reader(text: str) -> None:
    assert last_number(text) is None or isinstance(last_number(text), Fraction)


def test_regex_from_the_task_or_fixed() -> None:
    assert value(Regex(), "code 42-a", r"\d+-[ab]") == 1
    assert value(Regex(), "code 42-c", r"\d+-[ab]") == 0
    assert value(Regex(pattern="^yes$"), "yes") == 1
    with pytest.raises(UsageError, match=r"pattern `\(` of task `t-1` is not usable"):
        value(Regex(), "x", "(")
    with pytest.raises(UsageError, match=r"pattern `\[` is not usable"):
        value(Regex(pattern="["), "x")
    with pytest.raises(UsageError, match="longer than"):
        value(Regex(pattern="x" * 2000), "x")


def test_a_pattern_that_never_ends_is_stopped_and_the_next_one_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verify, "_SECONDS", 0.3)
    started = time.monotonic()
    first, second = grade(Regex(), episode("a" * 40 + "!", "(a+)+$"), episode("aaa", "(a+)+$"))
    assert time.monotonic() - started < 10
    assert first.value == 0 and "did not end in time" in first.feedback
    assert second.value == 1


@pytest.mark.integration  # sympy takes seconds to load
def test_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [
        ("0.5", r"\frac{1}{2}"), (r"The answer is $\frac{2}{4}$", "1/2"), ("$x + 1$", "$1 + x$"),
        (r"\sqrt{8}", r"2\sqrt{2}"), ("12", 12),
    ]  # fmt: skip
    scores = grade(MathVerify(), *(episode(answer, expected) for answer, expected in pairs))
    assert [score.value for score in scores] == [1] * len(pairs)
    assert value(MathVerify(), r"\frac{1}{3}", r"\frac{1}{2}") == 0
    assert value(MathVerify(), "no idea", "7") == 0
    with pytest.raises(UsageError, match="mathematical"):
        value(MathVerify(), "7", "")
    monkeypatch.setattr(verify, "_SECONDS", 2.0)
    assert value(MathVerify(), "$9^{9^{9^{9}}}$", "2") == 0


def test_a_missing_math_library_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"math-verify.*agentloop\[local\]"):
        value(MathVerify(), "1", "1")


OWN = DatasetScore(grader="hostile_grader:strict")


def test_dataset_score_keeps_the_value_and_decides_success() -> None:
    assert value(OWN, "4", "4") == 1
    assert value(OWN, "5", "4") == 0
    assert value(OWN, "half", "4") == 0.5


@pytest.mark.parametrize("data", [{}, {"isolate": True}])
def test_dataset_score_tells_a_bad_answer_from_a_broken_grader(data: dict[str, Json]) -> None:
    (score,) = grade(OWN, episode("raise", "4", data=data))
    assert score.value == 0 and "could not read the answer" in score.feedback
    with pytest.raises(GraderError, match=r"hostile_grader:strict.*ep-1") as caught:
        grade(OWN, episode("raise", "4", data={**data, "raise_on": "4"}))
    assert caught.value.episode == "ep-1"
    for odd in ("two", "nan"):
        with pytest.raises(GraderError, match="from 0 to 1"):
            grade(OWN, episode(odd, "4", data=data))


def test_an_isolated_grader_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_DATASET_SECONDS", 0.3)
    for answer in ("loop", "grow"):
        (score,) = grade(OWN, episode(answer, "4", data={"isolate": True}))
        assert score.value == 0 and "could not be graded" in score.feedback
    assert value(OWN, "4", "4", data={"isolate": True}) == 1


@pytest.mark.filterwarnings("ignore")
def test_dataset_score_with_the_library_itself() -> None:
    try:
        tasks = ReasoningGym(families=["gcd", "letter_counting"]).draw(4, split="train", seed=0)
    except MissingDependency as error:
        pytest.skip(str(error))
    good = [
        episode(str(t.expected), t.expected, family=t.family, data=t.data) for t in tasks
    ]  # fmt: skip
    assert [score.value for score in grade(DatasetScore(), *good)] == [1] * 4
    bad = [episode("-1", t.expected, family=t.family, data=t.data) for t in tasks]
    assert not any(score.success for score in grade(DatasetScore(), *bad))
