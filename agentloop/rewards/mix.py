"""Several rewards as one.

In: episodes. Out: the weighted mean of the parts' values, every part kept beside it, with the flags
that any of them raised. Success is that of the first reward: the others shape, they do not decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from agentloop.errors import UsageError
from agentloop.ports import Reward, part
from agentloop.records import Episode, Score
from agentloop.rewards.grading import FLAG


@part
class Mix:
    """`parts` is a list of (reward, weight); weights are positive and need not sum to 1."""

    parts: list[tuple[Any, float]]

    async def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """One score per episode. Raises `UsageError` for a part that is no reward or a weight that
        is not positive; a part's own error passes through."""
        if not self.parts:
            raise UsageError("`parts` is empty; give at least one reward and its weight")
        for reward, weight in self.parts:
            if not isinstance(reward, Reward):
                raise UsageError(f"`{reward!r:.60}` is not a reward: it has no method `score`")
            if not (math.isfinite(weight) and weight > 0):
                raise UsageError(f"the weight {weight} is not usable; give a positive number")
        columns = [await reward.score(episodes) for reward, _ in self.parts]
        return [self._one(scores) for scores in zip(*columns, strict=True)]

    def _one(self, scores: tuple[Score, ...]) -> Score:
        weights = [weight / sum(weight for _, weight in self.parts) for _, weight in self.parts]
        mean = sum(weight * score.value for weight, score in zip(weights, scores, strict=True))
        return Score(
            value=min(1.0, mean),
            success=scores[0].success,
            source=" + ".join(score.source for score in scores),
            feedback="; ".join(score.feedback for score in scores if score.feedback),
            parts={f"{at}:{score.source}": score.value for at, score in enumerate(scores)}
            | {
                name: value
                for score in scores
                for name, value in score.parts.items()
                if name.startswith(FLAG)
            },
        )
