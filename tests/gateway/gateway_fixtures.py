"""What the tests of this folder share: a recorded rollout behind a gateway, agents that call it."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentloop.gateway.program import Program, resolve_command
from agentloop.gateway.server import Gateway
from agentloop.graphs.lent import LentModel
from agentloop.graphs.program import program_graph
from agentloop.graphs.run import Runner
from agentloop.models.scripted import Scripted
from agentloop.ports import Model
from agentloop.records import Attempt, Endpoint, Episode, Limits, Sampling, Task

AGENTS = Path(__file__).parent / "agents"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
needs_node_client = pytest.mark.skipif(
    NODE is None or not (AGENTS / "node_modules" / "openai").is_dir(),
    reason="OpenAI's client for Node is not installed; run: npm ci in tests/gateway/agents",
)


def order(prompt: str = "What is 2 + 3?", **changes: Any) -> Attempt:
    """An order for a rollout."""
    given: dict[str, Any] = {
        "bundle": "b", "system": "Be brief.", "sampling": Sampling(seed=1), "purpose": "eval",
        "run": "r",
    }  # fmt: skip
    return Attempt(task=Task(id=prompt, prompt=prompt), **{**given, **changes})


@asynccontextmanager
async def lent_session(
    model: Model, limits: Limits = Limits()
) -> AsyncIterator[tuple[Gateway, LentModel, Endpoint]]:
    """A gateway with one open rollout, `one`."""
    async with Gateway() as gateway:
        lent = LentModel(model, order(), limits)
        gateway.open("one", lent)
        yield gateway, lent, gateway.endpoint("one")


def rollouts(
    command: Sequence[str],
    model: Model | Callable[[Any], Any],
    *,
    limits: Limits = Limits(),
    attempts: Sequence[Attempt] = (),
    native_tools: bool = True,
) -> list[Episode]:
    """Episodes of a program; a function stands for a scripted model."""
    lent = Scripted(model) if callable(model) else model

    async def main() -> list[Episode]:
        async with Gateway() as gateway:
            program = Program(resolve_command(tuple(command), AGENTS), gateway)
            runner = Runner(program_graph(program.drive), native_tools=native_tools)
            return await runner.run(attempts or [order()], model=lent, limits=limits)

    return asyncio.run(main())


def python(code: str) -> list[str]:
    """The command of a small Python agent."""
    return [sys.executable, "-c", code]
