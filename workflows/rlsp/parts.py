"""What only this workflow has: a reward that keeps correctness and search apart, and the scripted
model.

Goes in: episodes. Comes out: scores whose value is correctness alone, with the parts `correct` (1,
0, or -0.5 without an answer), `exploration` (-cost / length) and, where there is a judge, `effort`.
The parts are normalised and weighed by the credit, not here.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, cast

from pydantic import Field

from agentloop.datasets.groups import sampled_text
from agentloop.errors import UsageError
from agentloop.ports import part
from agentloop.records import Episode, Request, Score
from agentloop.refs import resolve
from agentloop.rewards.penalties import distinct, searching, with_effort
from agentloop.rewards.verify import Numeric

SOURCE = "searching"
_ANSWER = re.compile(r"\banswer\s*:\s*(?=\S)", re.IGNORECASE)
Judge = Callable[[str, str], float | None]
"""How hard the solver tried, from the question and the reasoning: 0 to 1, `None` when the judge
failed. Not whether it is right."""


@part
class Searching:
    """The first answer counts. `length` is that of the text before it, in different runs of `ngram`
    words, so that repeating oneself does not pay; `cost` is about a quarter of the usual length.

    `judge` names a function (question, reasoning) -> grade. One that raises or gives no grade
    from 0 to 1 counts as 0.5 and is marked by the part `judge_failed`; the feedback says why.
    """

    cost: Annotated[float, Field(ge=0)] = 6.0
    longest: Annotated[int, Field(ge=1)] | None = 48
    ngram: Annotated[int, Field(ge=1)] = 4
    judge: str = ""

    async def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """One score per episode. Raises `UsageError` for a judge that cannot be called."""
        texts = [reasoned(sampled_text(one)) for one in episodes]
        firsts = [
            replace(one, answer=answer) for one, (_, answer) in zip(episodes, texts, strict=True)
        ]
        graded = await Numeric().score(firsts)
        judge = self._judge()
        return [
            self._one(one, score, thought, answer, judge)
            for one, score, (thought, answer) in zip(episodes, graded, texts, strict=True)
        ]

    def _judge(self) -> Judge | None:
        if not self.judge:
            return None
        found = resolve(self.judge)
        if not callable(found):
            raise UsageError(f"`{self.judge}` is no function; write effort(question, reasoning)")
        return cast(Judge, found)

    def _one(
        self, episode: Episode, score: Score, thought: str, answer: str | None,
        judge: Judge | None,
    ) -> Score:  # fmt: skip
        right = None if answer is None or episode.failure else score.success
        length = distinct(thought.split(), self.ngram)
        parts = searching(right, length, self.cost, self.longest)
        feedback = score.feedback
        if judge is not None:
            grade, why = _grade(judge, episode.task.prompt, thought)
            found = with_effort(parts["correct"], grade)
            parts |= {"effort": found["effort"], "judge_failed": found["judge_failed"]}
            feedback = "; ".join(filter(None, (feedback, why)))
        parts["length"] = float(length)
        return replace(score, source=SOURCE, parts=parts, feedback=feedback)


def _grade(judge: Judge, question: str, thought: str) -> tuple[float | None, str]:
    """A grade, or none and why: the judge is the user's code, or a model behind it, and whatever it
    raises is no reason to lose the rollout."""
    try:
        return judge(question, thought), ""
    except Exception as error:
        return None, f"the judge of effort failed: {type(error).__name__}: {error!s:.200}"


def reasoned(text: str) -> tuple[str, str | None]:
    """What stands before the first stated answer, and that answer; the whole text and `None` when
    none is stated."""
    found = _ANSWER.search(text)
    if found is None:
        return text, None
    return text[: found.start()], text[found.end() :].splitlines()[0].strip()


MARKS = re.compile(r"\b(?:check|wait|try again|go back|instead|verify)\b", re.IGNORECASE)
"""Words of searching: verification and going back."""


def marks(text: str) -> int:
    """How often a text says that it checks or goes back."""
    return len(MARKS.findall(text))


def trying(question: str, thought: str) -> float | None:
    """The scripted judge: more marks are more effort; it fails on a text without a word."""
    return min(1.0, marks(thought) / 4) if thought.split() else None


def replies(request: Request) -> str:
    """The scripted model: adds; slips now and then unless it checks, which it does once trained and
    by chance before."""
    own = [one for one in request.messages if one.name != "example" and one.role != "system"]
    numbers = [int(one) for one in re.findall(r"\d+", own[0].content)]
    seed = request.sampling.seed if request.sampling.temperature else 0
    drawn = zlib.crc32(f"{seed}/{own[0].content}".encode()) % 10
    terms, total = " + ".join(map(str, numbers)), sum(numbers)
    if drawn == 9 and request.sampling.temperature:
        return f"Answer: {total}"
    if request.policy or drawn < 3:
        return (
            f"{terms} = {total + 1}\nLet me check: {total + 1} - {numbers[0]} is not "
            f"{total - numbers[0]}. Wait, try again.\n{terms} = {total}\nAnswer: {total}"
        )
    if drawn < 5:
        return f"{terms} is a sum of {len(numbers)} numbers and I am not sure what it is"
    return f"{terms} = {total + drawn % 2}\nAnswer: {total + drawn % 2}"
