"""Tool-integrated reasoning: think, write a program, read what it printed, and go on.

Goes in: `{"messages": [{"role": "user", "content": task}]}`. Comes out: the conversation and
`answer`. A reply ends where an output would begin, so a model cannot make up what its program
printed (`STOP`); at most `ROUNDS` programs are run, then the model is told that there are no more.
"""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from agentloop.errors import ToolError
from agentloop.graphs.context import RunContext, lent
from agentloop.graphs.messages import to_dict, to_message
from agentloop.graphs.text import final_answer, find_call
from agentloop.records import Message, Request, Sampling, ToolCall

STOP = ("```output", "\nOutput:")
ROUNDS = 4
RESULT = "Output:\n{result}"
NO_MORE = "Output:\nthe limit of programs is reached; answer now"


class State(TypedDict, total=False):
    """Messages in the OpenAI chat format, programs asked for, and the answer once there is one."""

    messages: Annotated[list[dict[str, Any]], operator.add]
    programs: Annotated[int, operator.add]
    answer: str


async def think(state: State, runtime: Runtime[RunContext]) -> State:
    """One turn of the model, up to where an output would stand."""
    context = lent(runtime)
    messages = tuple(to_message(message) for message in state["messages"])
    request = Request(messages=messages, sampling=Sampling(stop=STOP))
    reply = (await context.model.complete(request)).message
    update: State = {"messages": [to_dict(reply)]}
    if _program(reply, context) is None or state.get("programs", 0) > ROUNDS:
        update["answer"] = final_answer(reply.content)
    return update


async def execute(state: State, runtime: Runtime[RunContext]) -> State:
    """Run the program of the last reply; what the tool refuses is text for the model."""
    context = lent(runtime)
    call = _program(to_message(state["messages"][-1]), context)
    assert call is not None
    content = NO_MORE
    if state.get("programs", 0) < ROUNDS:
        try:
            result = await context.tools[call.name].call(call.arguments)
        except ToolError as error:
            result = f"Error: {error}"
        content = RESULT.format(result=result)
    return {"messages": [to_dict(Message(role="user", content=content))], "programs": 1}


def _program(reply: Message, context: RunContext) -> ToolCall | None:
    """The program that a reply ends with; one that boxes an answer is done (as in the authors'
    evaluation)."""
    if "\\boxed" in reply.content:
        return None
    return find_call(reply.content, [tool.spec for tool in context.tools.values()])


def _next(state: State) -> str:
    return END if "answer" in state else "execute"


graph = (
    StateGraph(State, context_schema=RunContext)
    .add_node("think", think)
    .add_node("execute", execute)
    .add_edge(START, "think")
    .add_conditional_edges("think", _next, ["execute", END])
    .add_edge("execute", "think")
    .compile(name="tool_integrated")
)
