"""The split grader of code: what is right is decided where the code cannot reach.

In: code, and hidden tests (a function's name, arguments, expected values). Out: an `Outcome`. The
code runs in a sandbox and is asked case by case under a fresh 128-bit id; the answer is one line of
JSON with the same id, within a deadline, compared here by exact types. Expected values, the clock
and the comparison never enter the sandbox, so code can only pass by computing. The decision worth
knowing: code that answers nothing, late or wrong is wrong; a sandbox that breaks is an error, never
a 0.
"""

from __future__ import annotations

import asyncio
import json
import keyword
import math
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import Field

from agentloop.errors import GraderError, SandboxError, SessionEnded, UsageError
from agentloop.ports import Sandbox, Sessions, part
from agentloop.records import Episode, Json, Program, Score, Task, record
from agentloop.refs import resolve
from agentloop.rewards.grading import FLAG, answer_of, right, without_answer, wrong
from agentloop.workspace import Workspace

CANARY = f"{FLAG}canary"
"""It passed tests that contradict their statement; only on tasks marked `canary`."""
FRAMES = f"{FLAG}frames"
"""It answered in a form, or under an id, that the worker inside never does."""
RAISES = ("ValueError", "TypeError", "LookupError", "KeyError", "IndexError", "ArithmeticError")
"""Errors that a test may expect (subclasses count)."""
LINE = 60_000
"""Bytes of the arguments of one case, as JSON, at most."""
_OPEN = "agentloop.sandboxes.profile:open_sandbox"
"""By reference: one stage does not import another."""
_WORKER = Path(__file__).with_name("split_worker.py").read_text(encoding="utf-8")
_PROGRAM = """\
{worker}

_solution = {{"__name__": "solution"}}
exec({code!r}, _solution)
_function = _solution.get({function!r})


def answer(line):
    return outcome_of(_function, line)
"""
_FENCE = re.compile(r"^[ \t]*```+[ \t]*(\w*)[^\n`]*$", re.MULTILINE)
_PYTHON = frozenset({"", "python", "py", "python3"})
Ask = Callable[[str], Awaitable[str]]


@record
class Case:
    """One call: what it must return, or the error it must raise."""

    arguments: tuple[Json, ...]
    expected: Json = None
    raises: str = ""


@record
class HiddenTests:
    """Hidden tests of one function; `tolerance` is of floats, relative above 1, absolute below."""

    function: str
    cases: tuple[Case, ...]
    tolerance: float = 0.0


@record
class Outcome:
    """Whether code passed; `why` says what went wrong without telling a case, `flags` which ways
    of gaming were seen."""

    passed: bool
    why: str = ""
    flags: tuple[str, ...] = ()


@part
class CodeTests:
    """Right when the code of an answer (see `code_of`) passes the task's `data["tests"]` in the
    sandbox of this name, each case within `seconds`; `parallel` answers side by side."""

    sandbox: str
    seconds: Annotated[float, Field(gt=0, le=600)] = 5.0
    parallel: Annotated[int, Field(ge=1, le=64)] = 4

    async def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """1 or 0 each, with flags among its parts. Raises `UsageError` for a task without usable
        tests or an unknown sandbox, `GraderError` when the sandbox broke on an episode."""
        open_sandbox: Any = resolve(_OPEN)
        sandbox: Sandbox = open_sandbox(self.sandbox, Workspace.find())
        turn = asyncio.Semaphore(self.parallel)
        try:
            graded = await asyncio.gather(
                *(self._one(sandbox, turn, one) for one in episodes), return_exceptions=True
            )
        finally:
            await sandbox.close()
        for one in graded:
            if isinstance(one, BaseException):
                raise one
        return [one for one in graded if isinstance(one, Score)]

    async def _one(self, sandbox: Sandbox, turn: asyncio.Semaphore, episode: Episode) -> Score:
        tests = hidden_tests(episode.task)
        if (score := without_answer(episode, _SOURCE)) is not None:
            return score
        code = code_of(episode, tests.function)
        if not code:
            return scored(Outcome(passed=False, why=f"no code defines `{tests.function}`"))
        async with turn:
            try:
                outcome = await grade(sandbox, code, tests, seconds=self.seconds)
            except SandboxError as error:
                raise GraderError(
                    f"the sandbox `{self.sandbox}` failed on episode {episode.id}: {error}",
                    episode=episode.id,
                ) from error
        return scored(outcome, canary=episode.task.data.get("canary") is True)


_SOURCE = f"{__name__}:CodeTests"


def scored(outcome: Outcome, *, canary: bool = False) -> Score:
    """The outcome as a `Score`: what passes a canary has gamed its tests and earns nothing."""
    parts = {FRAMES: float(FRAMES in outcome.flags)}
    if canary:
        parts[CANARY] = float(outcome.passed)
    if outcome.passed and not canary:
        score = right(_SOURCE)
    else:
        score = wrong(_SOURCE, outcome.why or "it passed tests that contradict their statement")
    return Score(
        value=score.value, success=score.success, source=_SOURCE, feedback=score.feedback,
        parts=parts,
    )  # fmt: skip


async def grade(
    sandbox: Sandbox, code: str, tests: HiddenTests, *, seconds: float = 5.0
) -> Outcome:
    """Ask `code` every case, until one is wrong.

    Raises `SandboxError` when the sandbox broke, `UsageError` when it keeps no sessions.
    """
    if not isinstance(sandbox, Sessions):
        raise UsageError("this sandbox keeps no sessions; grade in `bwrap`, `docker` or `monty`")
    program = Program(code=_PROGRAM.format(worker=_WORKER, code=code, function=tests.function))
    doing = "loading it"
    try:
        async with sandbox.session(program) as session:

            async def ask(line: str) -> str:
                return await session.ask(line, seconds=seconds)

            why = await _asked(ask, None, tests)
            for at, case in enumerate(tests.cases, start=1):
                if why:
                    break
                doing = f"case {at} of {len(tests.cases)}"
                why = await _asked(ask, case, tests)
            if not why:
                doing = "the end"
                why = await _asked(ask, None, tests)  # nothing else was sent meanwhile
    except SessionEnded as error:
        why = f"{error!s:.200}"
    except _Forged as error:
        return Outcome(passed=False, why=f"{doing}: {error}", flags=(FRAMES,))
    return Outcome(passed=not why, why=f"{doing}: {why}" if why else "")


class _Forged(Exception):
    """An answer that the worker did not make."""


async def _asked(ask: Ask, case: Case | None, tests: HiddenTests) -> str:
    """What is wrong with the answer to `case` (`None`: whether the function is there); empty when
    nothing is. Raises `SessionEnded` without an answer and `_Forged` for a strange one."""
    name = secrets.token_hex(16)
    request = {"id": name} if case is None else {"id": name, "arguments": case.arguments}
    frame = frame_of(await ask(json.dumps(request)), name)
    if "error" in frame:
        names = frame["error"]
        if case is not None and case.raises and case.raises in names:
            return ""
        said = names[0] if names[0].isidentifier() else "an error"
        return f"it raised {said:.60}" if case else f"there is no function `{tests.function}`"
    if case is None:
        return "" if frame["v"] is None else "a value nobody asked for"
    if case.raises:
        return f"it returned a value instead of raising {case.raises}"
    return "" if same(case.expected, frame["v"], tests.tolerance) else "a wrong value"


def frame_of(text: str, name: str) -> dict[str, Any]:
    """The answer `{"id", "v"}` or `{"id", "error"}` under the id `name`; anything else is
    forged."""
    try:
        frame = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise _Forged("an answer that is not JSON") from None
    if type(frame) is not dict or frame.get("id") != name:
        raise _Forged("an answer under another id")
    if set(frame) == {"id", "v"}:
        return frame
    names = frame.get("error")
    if set(frame) != {"id", "error"} or type(names) is not list or not names:
        raise _Forged("an answer of another form")
    if not all(type(one) is str for one in names):
        raise _Forged("an answer of another form")
    return frame


def same(expected: Json, given: object, tolerance: float = 0.0) -> bool:
    """Whether `given`, read from JSON, is `expected`: of the same type (an int may stand for a
    float, a bool for nothing else) and equal, floats within `tolerance`."""
    if type(expected) is float:
        if type(given) not in (int, float):
            return False
        try:
            off = abs(float(given) - expected)  # type: ignore[arg-type]
        except OverflowError:
            return False
        return math.isfinite(off) and off <= tolerance * max(1.0, abs(expected))
    if type(given) is not type(expected):
        return False
    if isinstance(expected, list) and isinstance(given, list):
        pairs = zip(expected, given, strict=False)
        return len(expected) == len(given) and all(same(a, b, tolerance) for a, b in pairs)
    if isinstance(expected, dict) and isinstance(given, dict):
        return expected.keys() == given.keys() and all(
            same(expected[key], given[key], tolerance) for key in expected
        )
    return given == expected


def code_of(episode: Episode, function: str) -> str:
    """The code that defines `function`: the last such Python block of the answer or, as a graph
    may keep only one line of a reply as the answer, of what the agent said; a text without fences
    is one block. Empty when there is none."""
    defines = re.compile(
        rf"^\s*(async\s+)?(def|class)\s+{function}\b|^{function}\s*=", re.MULTILINE
    )
    texts = [
        node.message.content
        for each in episode.trajectories if each.role == "agent"
        for node in each.nodes if node.message.role == "assistant"
    ]  # fmt: skip
    answer = answer_of(episode)
    whole = bool(texts) and answer in texts[-1]
    texts.insert(0 if whole else len(texts), answer)
    found = (block for text in reversed(texts) for block in reversed(blocks(text)))
    return next((block for block in found if defines.search(block)), "")


def blocks(text: str) -> list[str]:
    """The Python blocks between fences (one that is not closed goes to the end), or all of a text
    without fences."""
    fences = list(_FENCE.finditer(text))
    if not fences:
        return [text]
    found = []
    for at in range(0, len(fences), 2):
        after = fences[at + 1].start() if at + 1 < len(fences) else len(text)
        if fences[at][1].lower() in _PYTHON:
            found.append(text[fences[at].end() : after].strip("\n"))
    return found


def hidden_tests(task: Task) -> HiddenTests:
    """The hidden tests in `task.data["tests"]`. Raises `UsageError` for what is none."""
    try:
        return _tests(task.data["tests"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"the task `{task.id}` has no usable `tests` ({error}); give for instance "
            '{"function": "double", "cases": [{"arguments": [2], "expected": 4}]}'
        ) from None


def _tests(given: Any) -> HiddenTests:
    name, tolerance = given["function"], given.get("tolerance", 0.0)
    if type(name) is not str or not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"`function` is {name!r:.60}, which names no function")
    if type(tolerance) not in (int, float) or not 0 <= tolerance < 1:
        raise ValueError(f"`tolerance` is {tolerance!r:.60}, and not from 0 to below 1")
    cases = tuple(_case(one) for one in given["cases"])
    if not cases:
        raise ValueError("`cases` is empty")
    return HiddenTests(function=name, cases=cases, tolerance=float(tolerance))


def _case(given: Any) -> Case:
    arguments = given["arguments"]
    if type(arguments) is not list:
        raise ValueError("`arguments` is not a list")
    if len(json.dumps(arguments, allow_nan=False)) > LINE:
        raise ValueError(f"the `arguments` of a case have more than {LINE} bytes")
    if set(given) == {"arguments", "raises"}:
        if given["raises"] not in RAISES:
            raise ValueError(f"`raises` is not one of {', '.join(RAISES)}")
        return Case(arguments=tuple(arguments), raises=given["raises"])
    if set(given) != {"arguments", "expected"}:
        raise ValueError("a case has `arguments` and `expected` or `raises`")
    json.dumps(given["expected"], allow_nan=False)
    return Case(arguments=tuple(arguments), expected=given["expected"])


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
