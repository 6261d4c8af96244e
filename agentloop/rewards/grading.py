"""What all graders share: the score of a rollout that gave no answer, and the check of a value.

In: an episode, or a number that a grader gave. Out: a `Score`, or a typed error. The decision worth
knowing: the agent's own failures score 0 and say so; a grader's failures are errors, never a 0.
"""

from __future__ import annotations

import json
import math

from agentloop.errors import GraderError
from agentloop.records import AGENT_REASONS, Episode, Score, Task

SUCCESS = 0.99
"""A graded answer counts as right from this value on: graders that reach 1 by adding floats do."""
FLAG = "flag:"
"""How the parts of a score begin that say whether a way of gaming it was seen (1) or not (0)."""
MAX_ANSWER = 10_000
"""Characters; a longer text is no final answer, and comparing it would only cost time."""


def without_answer(episode: Episode, source: str) -> Score | None:
    """The score of an episode with nothing to grade, `None` when there is an answer.

    Raises `GraderError` for an episode that the infrastructure failed, which must not be scored.
    """
    failure = episode.failure
    if failure is not None:
        if failure.reason not in AGENT_REASONS:
            raise GraderError(
                f"episode {episode.id} ended by {failure.reason}, which is never scored",
                episode=episode.id,
            )
        return wrong(source, f"no answer was reached: {failure.reason} ({failure.detail})")
    if episode.answer is None or not episode.answer.strip():
        return wrong(source, "no answer was given")
    if len(episode.answer) > MAX_ANSWER:
        return wrong(source, f"the answer has {len(episode.answer)} characters; it should be short")
    return None


def right(source: str) -> Score:
    """Full marks."""
    return Score(value=1.0, success=True, source=source)


def wrong(source: str, feedback: str) -> Score:
    """No marks, and why."""
    return Score(value=0.0, success=False, source=source, feedback=feedback)


def checked(value: object, *, source: str, episode: str) -> float:
    """`value` as a reward; raises `GraderError` unless it is a finite number in [0, 1]."""
    if isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1:
        return float(value)
    raise GraderError(
        f"the grader `{source}` gave {value!r:.80} for episode {episode}; "
        "a reward is a number from 0 to 1",
        episode=episode,
    )


def answer_of(episode: Episode) -> str:
    """The answer, trimmed; call it after `without_answer`."""
    return (episode.answer or "").strip()


def expected_text(task: Task) -> str:
    """`expected` as text: a text itself, any other value as JSON."""
    expected = task.expected
    return expected if isinstance(expected, str) else json.dumps(expected, ensure_ascii=False)
