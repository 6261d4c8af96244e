"""A dataset's grader that can be made to hang, swell, raise and lie; the worker imports it too."""

from __future__ import annotations

import math

from agentloop.records import Task


def strict(task: Task, answer: str) -> float:
    if answer == "loop":
        while True:
            pass
    if answer == "grow":
        return len([0] * 10**11)
    if answer in ("raise", task.data.get("raise_on")):
        raise ValueError("cannot parse")
    return {"half": 0.5, "two": 2.0, "nan": math.nan}.get(answer, float(answer == task.expected))
