"""One answer from several samples: by number, by weight, or by the best score.

In: the samples' answers (`None` where one gave none) and scores. Out: the chosen answer, or the
index of the chosen sample. The decision worth knowing: answers are compared as they are, so
normalise them first; ties go to the sample that came first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from agentloop.errors import UsageError


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer (self-consistency, Wang et al. 2022)."""
    return weighted_majority(answers, [1.0] * len(answers))


def weighted_majority(answers: Sequence[str | None], weights: Sequence[float]) -> str | None:
    """The answer with the greatest sum of weights; `None` when no sample has an answer. Raises
    `UsageError` for a weight that is negative or not finite: it would count against its own."""
    if len(answers) != len(weights):
        raise UsageError(f"{len(answers)} answers have {len(weights)} weights; give one each")
    totals: dict[str, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if not (math.isfinite(weight) and weight >= 0):
            raise UsageError(f"a vote of weight {weight} is not usable; give a number from 0 on")
        if answer is not None:
            totals[answer] = totals.get(answer, 0.0) + weight
    return max(totals, key=totals.__getitem__) if totals else None


def best_of_n(scores: Sequence[float]) -> int:
    """The index of the highest score. Raises `UsageError` without any, or for one that is no
    number: it would win or lose by where it stands."""
    if not scores or any(math.isnan(score) for score in scores):
        raise UsageError(f"cannot choose the best of the scores {list(scores)[:8]}")
    return max(range(len(scores)), key=scores.__getitem__)


def sigmoid(score: float) -> float:
    """A reward model's score as a weight in (0, 1): its odds of beating a sample that scores 0."""
    if score >= 0:
        return 1.0 / (1.0 + math.exp(-score))
    return math.exp(score) / (1.0 + math.exp(score))
