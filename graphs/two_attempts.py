"""Two attempts in one conversation: answer, be asked once to look again, answer again.

Goes in: `{"messages": [{"role": "user", "content": task}]}`. Comes out: the conversation and
`answer`, the second one. What is asked in between is the same text for every task and says nothing
about whether the first attempt was right; the graph has no grader and is lent none, so nothing that
a grader knows can reach a prompt.
"""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from agentloop.graphs.context import RunContext, lent
from agentloop.graphs.messages import to_dict, to_message
from agentloop.graphs.text import final_answer
from agentloop.records import Message, Request

AGAIN = (
    "There may be a mistake in the solution above, or none. Go through it once more, correct what "
    "is wrong if anything is, and write the whole solution again. Give the result on a line that "
    'starts with "Answer:".'
)


class State(TypedDict, total=False):
    """Messages in the OpenAI chat format, and the answer once there is one."""

    messages: Annotated[list[dict[str, Any]], operator.add]
    answer: str


async def first(state: State, runtime: Runtime[RunContext]) -> State:
    """The first attempt, and the request for the second."""
    said = await _reply(state, runtime)
    return {"messages": [to_dict(said), to_dict(Message(role="user", content=AGAIN))]}


async def second(state: State, runtime: Runtime[RunContext]) -> State:
    """The second attempt, with the first before it; its answer counts."""
    said = await _reply(state, runtime)
    return {"messages": [to_dict(said)], "answer": final_answer(said.content)}


async def _reply(state: State, runtime: Runtime[RunContext]) -> Message:
    messages = tuple(to_message(message) for message in state["messages"])
    return (await lent(runtime).model.complete(Request(messages=messages))).message


graph = (
    StateGraph(State, context_schema=RunContext)
    .add_node("first", first)
    .add_node("second", second)
    .add_edge(START, "first")
    .add_edge("first", "second")
    .add_edge("second", END)
    .compile(name="two_attempts")
)
