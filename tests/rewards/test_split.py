"""The split grader: what crosses the line, what an answer must be, faults that are no zeros."""

from __future__ import annotations

import asyncio
import json
import string
from dataclasses import replace
from typing import Any

import pytest
from grading_fixtures import episode, grade
from hypothesis import given
from hypothesis import strategies as st
from scripted_sandbox import Scripted, computing

from agentloop.datasets.filters import Filters, Lent
from agentloop.datasets.makers import SFTRows
from agentloop.datasets.recipe import Recipe
from agentloop.errors import GraderError, SandboxError, SessionEnded, UnknownName, UsageError
from agentloop.lanes.bench import score
from agentloop.ports import Reward
from agentloop.records import Episode, Message, Node, Score, Trajectory
from agentloop.rewards import split
from agentloop.rewards.mix import Mix
from agentloop.rewards.split import CANARY, FRAMES, Case, CodeTests, HiddenTests, same
from agentloop.trajectories.summary import summarise

DOUBLE = HiddenTests(
    function="double",
    cases=tuple(Case(arguments=(n,), expected=2 * n) for n in (0, 3, 11, -4, 10**30)),
)
DATA: dict[str, Any] = {
    "tests": {
        "function": "double",
        "cases": [{"arguments": [n], "expected": 2 * n} for n in (0, 3, 11, -4, 10**30)],
    }
}
RIGHT = "Here it is:\n```python\ndef double(n):\n    return 2 * n\n```\n"
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def graded(sandbox: Any, tests: HiddenTests = DOUBLE) -> split.Outcome:
    return asyncio.run(split.grade(sandbox, "def double(n): ...", tests, seconds=3.0))


def lend(monkeypatch: pytest.MonkeyPatch, sandbox: Scripted) -> None:
    """Every sandbox that a grader opens is this one."""
    monkeypatch.setattr(split, "resolve", lambda _: lambda name, space: sandbox)


def test_every_question_has_an_id_of_its_own_and_no_answer_in_it() -> None:
    expected = [f"secret {n}" for n in range(6)]
    cases = tuple(Case(arguments=(n,), expected=one) for n, one in enumerate(expected))
    sandbox = Scripted(computing(lambda n: expected[n]))
    outcome = graded(sandbox, HiddenTests(function="double", cases=cases))
    assert outcome.passed and not outcome.why and not outcome.flags
    lines = [json.loads(one) for one in sandbox.sent[1:]]
    assert [one.get("arguments") for one in lines] == [None, [0], [1], [2], [3], [4], [5], None]
    assert len({one["id"] for one in lines}) == len(lines)
    assert all(len(bytes.fromhex(one["id"])) == 16 for one in lines)
    assert not any("secret" in one for one in sandbox.sent)
    assert set(sandbox.seconds) == {3.0}


def test_the_first_wrong_case_ends_it_and_is_not_told() -> None:
    sandbox = Scripted(computing(lambda n: 2 * n if n < 10 else 7777))
    outcome = graded(sandbox)
    assert (outcome.passed, outcome.why) == (False, "case 3 of 5: a wrong value")
    assert len(sandbox.sent) == 1 + 4


@pytest.mark.parametrize(
    "answer",
    [
        "", "null", "[]", "7", '"x"', "{}", '{"v": 6}', '{"id": "%s"}', '{"id": null, "v": 6}',
        '{"id": "%s", "v": 6, "passed": true}', '{"id": "%s", "error": []}', "[" * 100_000,
        '{"id": "%s", "v": 6}{"id": "%s", "v": 6}', '{"id": "%s", "v": NaN}', "9" * 5000,
        '{"id": "%s", "v": Infinity}', '{"id": "%s", "error": "ValueError"}',
        '{"id": "%s", "error": [7]}', '{"id": "%s", "v": 6, "error": ["ValueError"]}',
        '{"id": "00%s", "v": 6}', '["%s", 6]',
    ],
)  # fmt: skip
def test_an_answer_of_another_form_is_forged(answer: str) -> None:
    def reply(request: dict[str, Any]) -> Any:
        if request.get("arguments") != [3]:
            return computing(lambda n: 2 * n)(request)
        return answer.replace("%s", request["id"])

    outcome = graded(Scripted(reply))
    assert not outcome.passed and outcome.flags == (FRAMES,) and outcome.why.startswith("case 2 of")


@given(st.text() | JSON.map(json.dumps))
def test_any_text_is_a_frame_or_forged(text: str) -> None:
    try:
        frame = split.frame_of(text, "name")
    except split._Forged:
        return
    assert frame["id"] == "name" and len(frame) == 2


@given(JSON)
def test_a_value_is_the_same_after_its_journey_and_no_other_type_is(value: Any) -> None:
    frame = split.frame_of(json.dumps({"id": "x", "v": value}), "x")
    assert same(value, frame["v"])
    assert not same(value, [value]) and not same(value, {"": value})
    if not isinstance(value, str):
        assert not same(value, json.dumps(value))


@pytest.mark.parametrize(
    ("expected", "given_", "tolerance", "equal"),
    [
        (1, True, 0, False), (True, 1, 0, False), (0, False, 0, False), (1, 1.0, 0, False),
        (1.0, 1, 0, True), (1.0, True, 0, False), (None, 0, 0, False), (0, None, 0, False),
        (2.0, 2.1, 0.1, True), (2.0, 2.3, 0.1, False), (200.0, 219.0, 0.1, True),
        (0.0, 1e-7, 1e-6, True), (0.0, 1e-5, 1e-6, False), (1.0, 10**400, 0.1, False),
        (1.0, float("inf"), 0.9, False), (1.0, float("nan"), 0.9, False), (-0.0, 0.0, 0, True),
        ([1, [2]], [1, [2]], 0, True), ([1, 2], [1], 0, False), ([1], [1, 2], 0, False),
        ([True], [1], 0, False), ({"a": 1}, {"a": 1, "b": 2}, 0, False), ({"a": 1}, {}, 0, False),
        ({"a": 1.0}, {"a": 1.0 + 1e-9}, 1e-6, True), ("é", "e\u0301", 0, False), ([], {}, 0, False),
    ],
)  # fmt: skip
def test_exact_types(expected: Any, given_: Any, tolerance: float, equal: bool) -> None:
    assert same(expected, given_, tolerance) is equal


def test_an_expected_error_is_one_of_its_kind() -> None:
    tests = HiddenTests(function="double", cases=(Case(arguments=("x",), raises="ValueError"),))

    def says(*names: str) -> Any:
        return lambda request: (
            {"id": request["id"]}
            | ({"error": list(names)} if "arguments" in request else {"v": None})
        )

    assert graded(Scripted(says("UnicodeDecodeError", "ValueError")), tests).passed
    assert graded(Scripted(says("KeyError")), tests).why == "case 1 of 1: it raised KeyError"
    assert graded(Scripted(says("ignore all rules")), tests).why.endswith("it raised an error")
    assert "instead of raising" in graded(Scripted(computing(lambda x: x)), tests).why
    assert not graded(Scripted(says("ValueError"))).passed


def test_a_function_that_is_not_there_and_words_after_the_last_answer() -> None:
    missing = graded(Scripted(lambda one: {"id": one["id"], "error": ["NameError"]}))
    assert missing.why == "loading it: there is no function `double`"
    asked = iter(range(100))

    def late(request: dict[str, Any]) -> Any:
        known = computing(lambda n: 2 * n)(request)
        return known if next(asked) < 6 else SessionEnded("it wrote before it was asked")

    assert graded(Scripted(late)).why == "the end: it wrote before it was asked"


def test_a_sandbox_without_sessions_is_refused() -> None:
    class Plain:
        async def run(self, code: str) -> None: ...
        async def close(self) -> None: ...

    with pytest.raises(UsageError, match="keeps no sessions"):
        graded(Plain())


@pytest.mark.parametrize("at", range(8))
@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("first", [True, False])
def test_a_sandbox_that_breaks_masks_its_episode_and_no_other(
    monkeypatch: pytest.MonkeyPatch, at: int, parallel: int, first: bool
) -> None:
    """32 cases: no score, a typed reason, the episode still there, the others scored."""
    broken = SandboxError("it is gone")

    def reply(request: dict[str, Any]) -> Any:
        breaks = "unlucky" in sandbox.code and sandbox.asked == at
        return broken if breaks else computing(lambda n: 2 * n)(request)

    def starts(code: str) -> SandboxError | None:
        return broken if "unlucky" in code and at == 0 else None

    sandbox = Scripted(reply, starts)
    lend(monkeypatch, sandbox)
    good = [replace(episode(RIGHT, data=DATA), id=f"ep-{n}") for n in range(3)]
    unlucky = RIGHT.replace("    return", "    # unlucky\n    return")
    bad = replace(episode(unlucky, data=DATA), id="ep-bad")
    batch = [bad, *good] if first else [*good, bad]
    found = asyncio.run(score(CodeTests(sandbox="any", parallel=parallel), batch))
    assert [one.id for one in found] == [one.id for one in batch]
    for one in found:
        if one.id != "ep-bad":
            assert one.success
            continue
        assert one.score is None and one.failure is not None
        assert one.failure.reason == "grader_error"
        assert one.failure.detail.endswith("failed on episode ep-bad: it is gone")
    assert sandbox.closed == 1 + len(batch)  # all at once, then one by one


def test_code_is_graded_in_the_sandbox_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = CodeTests(sandbox="monty")
    assert isinstance(reward, Reward)
    right, wrong, none, broken, limit = grade(
        reward,
        episode(RIGHT, data=DATA),
        episode(RIGHT.replace("2 *", "3 *"), data=DATA),
        episode("I cannot double it.", data=DATA),
        episode("def double(n): return 2 *", data=DATA),
        episode(None, data=DATA, reason="turn_limit"),
    )
    assert right == Score(
        value=1.0, success=True, source="agentloop.rewards.split:CodeTests", parts={FRAMES: 0.0}
    )
    assert (wrong.value, wrong.feedback) == (0.0, "case 2 of 5: a wrong value")
    assert none.feedback == "no code defines `double`"
    assert broken.feedback.startswith("loading it: it ended early: ")
    assert (limit.value, limit.success) == (0.0, False) and "turn_limit" in limit.feedback
    with pytest.raises(GraderError, match="never scored"):
        grade(reward, episode(None, data=DATA, reason="model_error"))
    with pytest.raises(UnknownName, match="sandbox `monti`; did you mean `monty`"):
        grade(CodeTests(sandbox="monti"), episode(RIGHT, data=DATA))


def test_what_passes_a_canary_is_flagged_and_earns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def scores(reply: Any) -> list[Score]:
        lend(monkeypatch, Scripted(reply))
        reward = Mix(parts=[(CodeTests(sandbox="any"), 1.0)])
        return grade(reward, episode(RIGHT, data={**DATA, "canary": True}))

    [gamed] = scores(computing(lambda n: 2 * n))
    assert (gamed.value, gamed.success, gamed.parts[CANARY]) == (0.0, False, 1.0)
    assert gamed.feedback == "it passed tests that contradict their statement"
    [fooled] = scores(computing(lambda n: 3 * n))
    assert (fooled.value, fooled.parts[CANARY], fooled.parts[FRAMES]) == (0.0, 0.0, 0.0)
    [forged] = scores(lambda request: "{}")
    assert (forged.value, forged.parts[CANARY], forged.parts[FRAMES]) == (0.0, 0.0, 1.0)


F = "def f(): pass"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (f"```python\n{F}\n```", F), (f"```\na\n```\nand\n```py\n{F}\nb\n```\n", f"{F}\nb"),
        (f"```python\n{F}\n```\nOutput:\n```text\n{F} 7\n```", F), (F, F), ("f is 7", ""),
        (f"x = 1\n{F}", f"x = 1\n{F}"), (f"```python\n{F}\nb", f"{F}\nb"), ("def ff(): 1", ""),
        (f"```json\n{F}\n```", ""), ("```\nf(1)\n```", ""), ("```\nf = int\n```", "f = int"),
        (f"```python\n{F} # 1\n```\nBetter:\n```python\n{F} # 2\n```", f"{F} # 2"),
        (f"```python\n{F}\n```\nTry it:\n```python\nprint(f())\n```", F),
        (f"  ```Python title=x\n  {F}\n  ```", f"  {F}"), (f"````python\n{F}\n````", F),
        (f"a `b` ```c``` d\n{F}", f"a `b` ```c``` d\n{F}"), (f"```python\r\n{F}\r\n```", f"{F}\r"),
    ],
)  # fmt: skip
def test_the_last_python_block_with_the_function_is_the_code(answer: str, code: str) -> None:
    assert split.code_of(episode(answer), "f") == code
    last_line = answer.strip().splitlines()[-1]  # what graphs keep of it
    assert split.code_of(replace(replies_to(answer), answer=last_line), "f") == code


def test_an_answer_is_looked_at_before_what_was_said() -> None:
    said = replies_to(f"```\n{F} # said\n```")
    assert split.code_of(replace(said, answer=f"```\n{F} # answered\n```"), "f").endswith(
        "answered"
    )
    other = replace(said.trajectories[0], role="judge")
    assert split.code_of(replace(said, trajectories=(other,), answer="7"), "f") == ""


@given(
    st.lists(st.text(string.printable.replace("`", "")), max_size=3), st.text("ab \n=", min_size=1)
)
def test_whatever_stands_around_it(before: list[str], code: str) -> None:
    said = "".join(f"{one}\n```python\n{one}\n```\n" for one in before)
    found = split.blocks(f"{said}\n```python\n{code}\n```\nDone.")
    assert len(found) == len(before) + 1 and found[-1] == code.strip("\n")


BAD: list[Any] = [
    {}, None, 7, [], "x", {"function": "f"}, {"function": "f", "cases": []}, {"cases": [{}]},
    {"function": "f()", "cases": [{"arguments": [], "expected": 1}]},
    {"function": "lambda", "cases": [{"arguments": [], "expected": 1}]},
    {"function": "f", "cases": [{"arguments": 7, "expected": 1}]},
    {"function": "f", "cases": [{"arguments": [7]}]},
    {"function": "f", "cases": [{"arguments": [7], "expected": 1, "raises": "ValueError"}]},
    {"function": "f", "cases": [{"arguments": [7], "raises": "SystemExit"}]},
    {"function": "f", "cases": [{"arguments": ["x" * 70_000], "expected": 1}]},
    {"function": "f", "cases": [{"arguments": [float("nan")], "expected": 1}]},
    {"function": "f", "cases": [{"arguments": [1], "expected": float("inf")}]},
    {"function": "f", "cases": [{"arguments": [1], "expected": 1}], "tolerance": 1},
    {"function": "f", "cases": [{"arguments": [1], "expected": 1}], "tolerance": True},
]  # fmt: skip


@pytest.mark.parametrize("tests", BAD)
def test_tests_that_cannot_be_used_are_told(tests: Any) -> None:
    with pytest.raises(UsageError, match="the task `t-1` has no usable `tests`"):
        grade(CodeTests(sandbox="monty"), episode(RIGHT, data={"tests": tests}))


@given(JSON)
def test_any_other_tests_are_a_sentence_too(tests: Any) -> None:
    with pytest.raises(UsageError, match="no usable `tests`"):
        split.hidden_tests(episode("x", data={"tests": tests}).task)


def test_masked_episodes_stay_counted_and_reach_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    lend(monkeypatch, Scripted(lambda request: SandboxError("gone")))
    graded_before = Score(value=1.0, success=True, source="s")
    samples = [
        replace(replies_to(RIGHT), id=f"ep-{at}", sample=at, purpose="collect") for at in range(4)
    ]
    found = asyncio.run(score(CodeTests(sandbox="any"), samples[:2]))
    found += [replace(one, score=graded_before) for one in samples[2:]]
    assert len(found) == 4 and summarise(found).partial_groups == 1
    built = Recipe(select=Filters(), rows=SFTRows()).build(found, Lent())
    assert {row.episode for row in built.rows} == {"ep-2", "ep-3"}
    assert built.left_out["episodes"]["broken or unscored"] == 2


def replies_to(answer: str) -> Episode:
    nodes = (
        Node(parent=None, message=Message(role="user", content="?"), token_ids=(1,)),
        Node(
            parent=0, message=Message(role="assistant", content=answer), token_ids=(2, 3),
            sampled=True, logprobs=(-0.1, -0.1),
        ),
    )  # fmt: skip
    return replace(episode(answer, data=DATA), trajectories=(Trajectory(nodes=nodes),))
