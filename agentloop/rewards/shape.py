"""Rewards made of two signals: a verifier's and a model's, a task's and a tool's.

In: numbers. Out: a number for credit to work on; it may lie outside [0, 1], so it is not a `Score`.
The decision worth knowing: where a learned signal joins a verified one it is bounded first, so no
value of it can make a wrong answer better than a right one.
"""

from __future__ import annotations

import math

from agentloop.errors import UsageError


def verified_and_modelled(
    model: float, right: bool, *, alpha: float = 0.5, most: float = 20.0
) -> float:
    """sigmoid(alpha x model) + verifier - 1 (Yang et al. 2024, Qwen2.5-Math, section 3.3).

    `model`, the reward model's score, is held in [-`most`, `most`]: beyond about 75 a sigmoid is 0
    or 1 exactly and a right answer could tie with a wrong one. Right answers are in (0, 1), wrong
    ones in (-1, 0). Raises `UsageError` when the score is not a number or the bound too wide.
    """
    if math.isnan(model):
        raise UsageError("the reward model's score is not a number")
    if not 0 < alpha * most <= 30:
        raise UsageError(f"alpha x most is {alpha * most:g}; give a product from 0 to 30")
    held = max(-most, min(most, model))
    return 1.0 / (1.0 + math.exp(-alpha * held)) + float(right) - 1.0


def tool_bonus(calls: int, scale: float, *, each: float = 0.1, most: float = 1.0) -> float:
    """`scale` x min(`most`, `each` x turns with a tool call): what is added to the task's reward
    while tools are to be tried (`scale` falls to 0 over training, then spam earns nothing)."""
    if calls < 0:
        raise UsageError(f"{calls} tool calls")
    return scale * min(most, each * calls)
