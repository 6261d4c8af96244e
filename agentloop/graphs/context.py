"""What a run is lent: a model, tools, limits. Passed to nodes, never part of the state.

A graph written for agentloop takes it through LangGraph (`StateGraph(..., context_schema=
RunContext)`, then `lent(runtime)` in a node). An existing agent need not know of it:
`agentloop.chat_model()` finds the same object through a context variable, which LangGraph carries
into async nodes and into the threads of synchronous ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from langgraph.runtime import Runtime

from agentloop.errors import UsageError
from agentloop.graphs.lent import LentModel
from agentloop.ports import Tool
from agentloop.records import Limits


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Lent for one rollout. `tools` by name; `native_tools` says whether the model is given them
    as function schemas or calls them in plain text."""

    model: LentModel
    tools: Mapping[str, Tool]
    limits: Limits
    native_tools: bool = True


current_run: ContextVar[RunContext | None] = ContextVar("current_run", default=None)


def current() -> RunContext:
    """The rollout that is running here. Raises `UsageError` outside of one."""
    context = current_run.get()
    if context is None:
        raise UsageError(
            "this agent's model is lent by agentloop, and no rollout is known in this thread: run "
            "the agent with `agentloop run WORKFLOW`; in a thread pool of your own, submit "
            "`contextvars.copy_context().run` with the function"
        )
    return context


def lent(runtime: Runtime[RunContext]) -> RunContext:
    """A node's context. Raises `UsageError` when the graph was invoked without one."""
    return runtime.context or current()
