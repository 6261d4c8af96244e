"""Graders that compare an answer with the task's `expected`, and the dataset's own grader.

In: episodes. Out: a `Score` each, 1 or 0 (`DatasetScore` may give parts), with feedback that a
learner can use. The decision worth knowing: what can hang on a hostile answer (a pattern, symbolic
mathematics, a grader that evaluates) runs in a process that is killed at its deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from agentloop.errors import GraderError, MissingDependency, UsageError
from agentloop.ports import part
from agentloop.records import Episode, Json, Score, Task
from agentloop.refs import resolve
from agentloop.rewards.grading import (
    SUCCESS,
    answer_of,
    checked,
    expected_text,
    right,
    without_answer,
    wrong,
)
from agentloop.rewards.isolated import TooCostly, shared
from agentloop.trajectories.codec import from_json, to_json

_HERE = "agentloop.rewards.verify"
_MAX_PATTERN = 1_000
_SECONDS = 5.0
"""Of one comparison in the worker."""
_DATASET_SECONDS = 30.0
"""The same for a dataset's grader, which may first import its library."""
_OUTER = "\"'`* "
_NUMBER = re.compile(
    r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)"
    r"(?:[eE][-+]?\d{1,3}(?!\d))?(?:\s?/\s?0*[1-9]\d*)?"
)


@part
class Exact:
    """Right when the texts are equal but for case, spacing, Unicode form, quotes and a full stop;
    an `expected` that is no text is compared as JSON."""

    async def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """1 or 0 each."""
        return [_graded(episode, f"{_HERE}:Exact", _same_text) for episode in episodes]


@part
class Numeric:
    """Right when the last number of the answer is within `tolerance` of `expected`: absolutely
    below 1, relative to `expected` above. Reads signs, 1,000s, decimals, exponents, fractions."""

    tolerance: float = 1e-6

    async def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """1 or 0 each. Raises `UsageError` for an `expected` without a number."""
        if not 0 <= self.tolerance < 1:
            raise UsageError(f"`tolerance` is {self.tolerance}; give a number from 0 to below 1")
        return [_graded(episode, f"{_HERE}:Numeric", self._close) for episode in episodes]

    def _close(self, episode: Episode) -> bool | str:
        wanted = last_number(expected_text(episode.task))
        if wanted is None:
            raise _unusable(episode.task, "a number")
        given = last_number(answer_of(episode))
        if given is None:
            return f"expected the number {expected_text(episode.task)}, but the answer has none"
        return abs(given - wanted) <= Fraction(self.tolerance) * max(Fraction(1), abs(wanted))


@part
class Regex:
    """Right when `pattern` (default: the task's `expected`) is found in the answer."""

    pattern: str | None = None

    async def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """1 or 0 each. Raises `UsageError` for a pattern that does not compile."""
        return [
            await asyncio.to_thread(_graded, episode, f"{_HERE}:Regex", self._found)
            for episode in episodes
        ]

    def _found(self, episode: Episode) -> bool | str:
        pattern = expected_text(episode.task) if self.pattern is None else self.pattern
        try:
            if len(pattern) > _MAX_PATTERN:
                raise ValueError(f"longer than {_MAX_PATTERN} characters")
            re.compile(pattern)
        except (re.error, ValueError, RecursionError, OverflowError) as error:
            whose = f"of task `{episode.task.id}` " if self.pattern is None else ""
            raise UsageError(f"the pattern `{pattern:.60}` {whose}is not usable: {error}") from None
        arguments: dict[str, Json] = {"pattern": pattern, "text": answer_of(episode)}
        found = shared.call(f"{_HERE}:found", arguments, seconds=_SECONDS)
        return bool(found) or f"the answer {answer_of(episode):.200} does not match `{pattern}`"


@part
class MathVerify:
    """Right when the answer is mathematically equal to `expected` (LaTeX or plain text), as the
    `math-verify` library sees it."""

    async def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """1 or 0 each. Raises `MissingDependency` without the library, and `UsageError` for an
        `expected` that is not mathematical."""
        if importlib.util.find_spec("math_verify") is None:
            raise MissingDependency("`math-verify`", 'pip install "agentloop[local]"')
        return [
            await asyncio.to_thread(_graded, episode, f"{_HERE}:MathVerify", _equal)
            for episode in episodes
        ]


class _Unreadable(Exception):
    """A grader that works raised on this answer."""


@part
class DatasetScore:
    """The grader that a dataset brings, `grader(task, answer) -> float` (default: that of
    `reasoning_gym`). A task marked `data["isolate"]` is graded in the worker process."""

    grader: str = "agentloop.tasks.reasoning_gym:score_answer"

    async def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """The dataset's value each; right from 0.99 on. Raises `GraderError` when the grader does
        not even accept the expected answer."""
        return [await asyncio.to_thread(self._one, episode) for episode in episodes]

    def _one(self, episode: Episode) -> Score:
        source = f"{_HERE}:DatasetScore"
        if (score := without_answer(episode, source)) is not None:
            return score
        try:
            given = self._patiently(episode)
        except TooCostly as error:
            return wrong(source, f"the answer could not be graded: {error}")
        except _Unreadable as error:
            return wrong(source, f"the grader could not read the answer: {error!s:.200}")
        value = checked(given, source=self.grader, episode=episode.id)
        if value >= SUCCESS:
            return Score(value=value, success=True, source=source)
        return Score(value=value, success=False, source=source, feedback=_difference(episode))

    def _patiently(self, episode: Episode) -> object:
        """The grader's value; its exception only when it has shown to work on the right answer."""
        try:
            return self._value(episode.task, answer_of(episode))
        except UsageError:
            raise
        except TooCostly as error:
            self._must_know_its_own(episode, error)  # this also imports what may have taken long
            return self._value(episode.task, answer_of(episode))
        except Exception as error:
            self._must_know_its_own(episode, error)
            raise _Unreadable(str(error)) from error

    def _value(self, task: Task, answer: str) -> object:
        if task.data.get("isolate") is not True:
            return graded(self.grader, task, answer)
        arguments: dict[str, Json] = {
            "reference": self.grader,
            "task": to_json(task),
            "answer": answer,
        }
        return shared.call(f"{_HERE}:graded_json", arguments, seconds=_DATASET_SECONDS)

    def _must_know_its_own(self, episode: Episode, error: Exception) -> None:
        """A grader that raises on the expected answer too is broken, whatever the agent wrote."""
        try:
            self._value(episode.task, expected_text(episode.task))
        except Exception:
            raise GraderError(
                f"the grader `{self.grader}` failed on episode {episode.id}: {error!r:.200}",
                episode=episode.id,
            ) from error


def found(pattern: str, text: str) -> bool:
    """Whether `pattern` is found in `text`; called in the worker."""
    return re.search(pattern, text) is not None


def graded(reference: str, task: Task, answer: str) -> object:
    """What the grader named `reference` gives."""
    grader: Any = resolve(reference)
    return grader(task, answer)


def graded_json(reference: str, task: dict[str, Json], answer: str) -> object:
    """The same from JSON types; called in the worker."""
    return graded(reference, from_json(Task, task), answer)


def normalised(text: str) -> str:
    """Lower case, NFKC, single spaces, no outer quotes or emphasis, no full stop at the end."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.strip(_OUTER).removesuffix(".").strip(_OUTER) or folded


def last_number(text: str) -> Fraction | None:
    """The last number in `text`, exactly; `None` when there is none (of a length Python reads)."""
    text = unicodedata.normalize("NFKC", text).replace("−", "-").replace("⁄", "/")
    for match in reversed(list(_NUMBER.finditer(text))):
        above, _, below = match.group().replace(",", "").replace(" ", "").partition("/")
        with contextlib.suppress(ValueError):
            return Fraction(above) / Fraction(below or 1)
    return None


def _graded(
    episode: Episode, source: str, compare: Callable[[Episode], bool | str]
) -> Score:  # fmt: skip
    """`compare` gives True, False or a reason; what it costs too much is wrong as well."""
    if (score := without_answer(episode, source)) is not None:
        return score
    try:
        verdict = compare(episode)
    except TooCostly as error:
        return wrong(source, f"the answer could not be compared: {error}")
    except GraderError as error:
        raise GraderError(f"{error} (episode {episode.id})", episode=episode.id) from error
    if verdict is True:
        return right(source)
    return wrong(source, verdict if isinstance(verdict, str) else _difference(episode))


def _difference(episode: Episode) -> str:
    return f"expected {expected_text(episode.task):.500}, got {answer_of(episode):.500}"


def _same_text(episode: Episode) -> bool:
    answer, expected = answer_of(episode), episode.task.expected
    if normalised(answer) == normalised(expected_text(episode.task)):
        return True
    if isinstance(expected, str):
        return False
    try:
        given = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return json.dumps(given, sort_keys=True) == json.dumps(expected, sort_keys=True)


def _equal(episode: Episode) -> bool:
    arguments: dict[str, Json] = {
        "expected": expected_text(episode.task), "answer": answer_of(episode),
    }  # fmt: skip
    equal = shared.call("agentloop.rewards.symbolic:equal", arguments, seconds=_SECONDS)
    if equal is None:
        raise _unusable(episode.task, "a mathematical text")
    return equal is True


def _unusable(task: Task, wanted: str) -> UsageError:
    return UsageError(
        f"`expected` of task `{task.id}` is {expected_text(task)!r:.60}; this grader needs {wanted}"
    )
