"""A user's own grader: one function in a file beside the workflow.

    def grade(answer: str, task: Task) -> float | bool | Score: ...        (or `async def`)

In: episodes. Out: what the function gave, as `Score`s. The decision worth knowing: a grader that
raises, hangs or gives no number from 0 to 1 is a `GraderError` that names the file and the episode;
it is never counted as a wrong answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentloop.errors import BudgetReached, GraderError, UsageError
from agentloop.ports import part
from agentloop.records import Episode, Score
from agentloop.refs import resolve
from agentloop.rewards.grading import (
    SUCCESS,
    answer_of,
    checked,
    expected_text,
    without_answer,
    wrong,
)


@part
class Function:
    """The grader named by `grade` (`./grader.py:grade`, a path relative to `base`).

    A number counts as right from 0.99 on; return a `Score` to decide otherwise. `seconds` is the
    deadline of one call.
    """

    grade: str
    base: str = "."
    seconds: float = 60.0

    async def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """One call per answer, in order; an episode without an answer scores 0 without a call.

        Raises `UsageError` when the grader cannot be loaded, `GraderError` when it fails.
        """
        grader = resolve(self.grade, Path(self.base))
        if not callable(grader):
            raise UsageError(f"`{self.grade}` is no function; write grade(answer, task) -> float")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise UsageError(f"`seconds` is {self.seconds}; give a positive number")
        return [await self._one(grader, episode) for episode in episodes]

    async def _one(self, grader: Callable[..., Any], episode: Episode) -> Score:
        if (score := without_answer(episode, self.grade)) is not None:
            return score
        where = f"the grader `{self.grade}` (in {Path(self.base).resolve()})"
        try:
            given = await asyncio.wait_for(self._call(grader, episode), self.seconds)
        except TimeoutError as error:
            raise GraderError(
                f"{where} did not end within {self.seconds:g} s on episode {episode.id}",
                episode=episode.id,
            ) from error
        except (UsageError, BudgetReached):
            raise
        except Exception as error:
            raise GraderError(
                f"{where} raised {type(error).__name__} on episode {episode.id}: {error}",
                episode=episode.id,
            ) from error
        if isinstance(given, Score):
            checked(given.value, source=self.grade, episode=episode.id)
            return replace(given, source=given.source or self.grade)
        value = checked(given, source=self.grade, episode=episode.id)
        if value >= SUCCESS:
            return Score(value=value, success=True, source=self.grade)
        feedback = f"{answer_of(episode):.500} was graded {value:g}"
        if episode.task.expected is not None:
            feedback += f"; expected {expected_text(episode.task):.500}"
        return replace(wrong(self.grade, feedback), value=value)

    async def _call(self, grader: Callable[..., Any], episode: Episode) -> object:
        given = await _in_thread(lambda: grader(answer_of(episode), episode.task))
        return await given if inspect.isawaitable(given) else given


def _in_thread(call: Callable[[], object]) -> Awaitable[object]:
    """`call` in a daemon thread: one that hangs for ever must not keep the process alive, as a
    thread of the loop's own pool would."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[object] = loop.create_future()

    def settle(result: object, error: BaseException | None) -> None:
        if future.done():  # given up on meanwhile
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        result: object = None
        error: BaseException | None = None
        try:
            result = call()
        except StopIteration as raised:  # a future refuses this one
            error = RuntimeError(f"StopIteration: {raised}")
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="grader", daemon=True).start()
    return future
