"""An agent that acts by programs until the task is ended.

Goes in: the task. Comes out: the conversation. As the graph `react`, but the output that ends the
task also ends the conversation, so that nothing is paid for a last word.
"""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from agentloop.errors import ToolError
from agentloop.graphs.context import RunContext, lent
from agentloop.graphs.messages import to_dict, to_message
from agentloop.graphs.text import find_call
from agentloop.records import Message, Request
from agentloop.tools.world_code import ENDED


class State(TypedDict, total=False):
    """Messages in the OpenAI chat format, and the answer once there is one."""

    messages: Annotated[list[dict[str, Any]], operator.add]
    answer: str


async def act(state: State, runtime: Runtime[RunContext]) -> State:
    """One reply of the model, and its program run."""
    context = lent(runtime)
    asked = Request(messages=tuple(to_message(message) for message in state["messages"]))
    reply = (await context.model.complete(asked)).message
    call = find_call(reply.content, [tool.spec for tool in context.tools.values()])
    if call is None:
        return {"messages": [to_dict(reply)], "answer": reply.content}
    try:
        output = await context.tools[call.name].call(call.arguments)
    except ToolError as error:
        output = f"Error: {error}"
    shown = Message(role="user", content=f"Output:\n{output}")
    update: State = {"messages": [to_dict(reply), to_dict(shown)]}
    if output.endswith(ENDED):
        update["answer"] = ENDED
    return update


def _next(state: State) -> str:
    return END if "answer" in state else "act"


graph = (
    StateGraph(State, context_schema=RunContext)
    .add_node("act", act)
    .add_edge(START, "act")
    .add_conditional_edges("act", _next, ["act", END])
    .compile(name="sage")
)
