"""An agent that is no graph, as a graph of one node: so every agent is run by the same runner.

In: `drive`, which runs the agent of one rollout to its end with the model that is lent to it.
Out: a compiled graph whose state holds the task and `answer`. Limits, deadlines, recording and
typed failures are the runner's, the same as for any graph.
"""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeAlias, TypedDict

from langgraph.config import get_config
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from agentloop.graphs.context import RunContext, lent
from agentloop.graphs.lent import LentModel
from agentloop.graphs.load import Graph
from agentloop.graphs.plain_tools import PlainTools
from agentloop.graphs.text import final_answer
from agentloop.ports import Model
from agentloop.records import Completion, Request

Drive: TypeAlias = Callable[[str, str, Model], Awaitable[str]]
"""(rollout's name, task, model) to the text that holds the answer. The task of a conversation is
all of it, `role: text` by `role: text`."""


class State(TypedDict, total=False):
    """The task as the first message, and the answer once there is one."""

    messages: Annotated[list[dict[str, Any]], operator.add]
    answer: str


def program_graph(drive: Drive, *, calls_only: bool = False) -> Graph:
    """A graph for `Runner`. What `drive` raises is the rollout's failure. With `calls_only` its
    time is that of its model calls: what the agent does in between is not ours to limit."""

    async def program(state: State, runtime: Runtime[RunContext]) -> State:
        context = lent(runtime)
        own: Model = _CallsOnly(context.model) if calls_only else context.model
        model: Model = own if context.native_tools else PlainTools(own)
        rollout = get_config()["configurable"]["thread_id"]
        return {"answer": final_answer(await drive(rollout, _task(state["messages"]), model))}

    return (
        StateGraph(State, context_schema=RunContext)
        .add_node("program", program)
        .add_edge(START, "program")
        .add_edge("program", END)
        .compile(name="program")
    )


class _CallsOnly:
    """A lent model whose clock stands still while none of its calls is under way."""

    def __init__(self, model: LentModel) -> None:
        self._model, self._calls = model, 0
        model.clock.stop()

    async def complete(self, request: Request) -> Completion:
        """As the lent model."""
        if not self._calls:
            self._model.clock.go()
        self._calls += 1
        try:
            return await self._model.complete(request)
        finally:
            self._calls -= 1
            if not self._calls:
                self._model.clock.stop()


def _task(messages: list[dict[str, Any]]) -> str:
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
