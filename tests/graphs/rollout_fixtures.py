"""What the tests of this folder share: orders for rollouts and a runner for the shipped agent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentloop.graphs.load import load_graph
from agentloop.graphs.run import Runner
from agentloop.models.scripted import Scripted
from agentloop.records import Attempt, Episode, Limits, Sampling, Task
from agentloop.tools.spec import tool

ROOT = Path(__file__).parents[2]


def attempt(prompt: str = "What is 2 + 3?", **changes: Any) -> Attempt:
    """An order; `changes` go to it, `expected` and `data` to its task."""
    task = Task(
        id=changes.pop("task_id", prompt),
        prompt=prompt,
        expected=changes.pop("expected", None),
        data=changes.pop("data", {}),
    )
    given: dict[str, Any] = {
        "bundle": "b", "system": "", "sampling": Sampling(seed=1), "purpose": "eval", "run": "r",
    }  # fmt: skip
    return Attempt(task=task, **{**given, **changes})


def react() -> Any:
    """The shipped agent."""
    return load_graph("react", [ROOT], ROOT)


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def rollouts(
    replies: Any, attempts: Sequence[Attempt] = (), *, graph: Any = None, **options: Any
) -> list[Episode]:
    """Run `attempts` (default: one) on scripted replies, or on a model."""
    model = replies if hasattr(replies, "complete") else Scripted(replies)
    runner = Runner(
        graph if graph is not None else react(),
        checkpoints=options.pop("checkpoints", None),
        native_tools=options.pop("native_tools", False),
    )
    options.setdefault("limits", Limits(seconds=20))
    options.setdefault("tools", (add,))
    return asyncio.run(runner.run(attempts or [attempt()], model=model, **options))
