"""A multi-turn tool-use agent: model -> tools -> model -> ... -> final answer.

Goes in: `{"messages": [{"role": "user", "content": task}]}`. Comes out: the conversation and
`answer`. Tools are called natively where the model has function calling, and otherwise in plain
text: a fenced block named after the tool. The state holds JSON types only.
"""

from __future__ import annotations

import operator
from typing import Annotated, Any, Literal, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from agentloop.errors import ToolError
from agentloop.graphs.context import RunContext, lent
from agentloop.graphs.messages import to_dict, to_message
from agentloop.graphs.text import final_answer, find_call
from agentloop.records import Message, Request, ToolCall

# How a result goes back to the model, and what counts as the answer.
NATIVE_RESULT_ROLE: Literal["tool"] = "tool"
TEXT_RESULT_ROLE: Literal["user", "tool"] = "user"
RESULT = "Output:\n{result}"  # of a call in plain text; a native result stands as it is
EXTRACT = final_answer


class State(TypedDict, total=False):
    """Messages in the OpenAI chat format, and the answer once there is one."""

    messages: Annotated[list[dict[str, Any]], operator.add]
    answer: str


async def call_model(state: State, runtime: Runtime[RunContext]) -> State:
    """One turn of the model."""
    context = lent(runtime)
    specs = tuple(tool.spec for tool in context.tools.values())
    request = Request(
        messages=tuple(to_message(message) for message in state["messages"]),
        tools=specs if context.native_tools else (),
    )
    reply = (await context.model.complete(request)).message
    update: State = {"messages": [to_dict(reply)]}
    if not _calls(reply, context):
        update["answer"] = EXTRACT(reply.content)
    return update


async def call_tools(state: State, runtime: Runtime[RunContext]) -> State:
    """Run what the last reply asks for; a tool's refusal is text for the model."""
    context = lent(runtime)
    reply = to_message(state["messages"][-1])
    results = []
    for call in _calls(reply, context):
        result = await _call(call, context)
        if reply.tool_calls:
            message = Message(role=NATIVE_RESULT_ROLE, content=result, tool_call_id=call.id)
        else:
            message = Message(role=TEXT_RESULT_ROLE, content=RESULT.format(result=result))
        results.append(to_dict(message))
    return {"messages": results}


def _calls(reply: Message, context: RunContext) -> tuple[ToolCall, ...]:
    if reply.tool_calls:
        return reply.tool_calls
    call = find_call(reply.content, [tool.spec for tool in context.tools.values()])
    return (call,) if call else ()


async def _call(call: ToolCall, context: RunContext) -> str:
    tool = context.tools.get(call.name)
    if tool is None:
        return f"Error: there is no tool `{call.name}`; tools: {', '.join(context.tools) or 'none'}"
    try:
        return await tool.call(call.arguments)
    except ToolError as error:
        return f"Error: {error}"


def _next(state: State) -> str:
    return END if "answer" in state else "tools"


graph = (
    StateGraph(State, context_schema=RunContext)
    .add_node("model", call_model)
    .add_node("tools", call_tools)
    .add_edge(START, "model")
    .add_conditional_edges("model", _next, ["tools", END])
    .add_edge("tools", "model")
    .compile(name="react")
)
