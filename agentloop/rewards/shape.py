"""Rewards made of two signals: a task's and a tool's.

In: numbers. Out: a number for credit to work on; it may lie outside [0, 1], so it is not a `Score`.
"""

from __future__ import annotations

from agentloop.errors import UsageError


def tool_bonus(calls: int, scale: float, *, each: float = 0.1, most: float = 1.0) -> float:
    """`scale` x min(`most`, `each` x turns with a tool call): what is added to the task's reward
    while tools are to be tried (`scale` falls to 0 over training, then spam earns nothing)."""
    if calls < 0:
        raise UsageError(f"{calls} tool calls")
    return scale * min(most, each * calls)
