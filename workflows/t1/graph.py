"""Think within a budget, then answer: what a rollout of this workflow does.

Goes in: `{"messages": [{"role": "user", "content": task}]}`. Comes out: the conversation and
`answer`. The budget of the thinking is the attempt's `max_tokens`; a reply that states no answer
within it is asked for one, and the same model answers from what it had thought so far.
"""

from __future__ import annotations

import operator
import re
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from agentloop.graphs.context import RunContext, lent
from agentloop.graphs.messages import to_dict, to_message
from agentloop.graphs.text import final_answer
from agentloop.records import Message, Request, Sampling

FORCE = 'Stop here. From the steps so far alone, give the result on a line with "Answer:".'
SHORT = 12
"""Tokens of a forced answer: enough to state it, too few to go on thinking."""
_STATED = re.compile(r"\banswer\s*:\s*\S", re.IGNORECASE)


class State(TypedDict, total=False):
    """Messages in the OpenAI chat format, and the answer once there is one."""

    messages: Annotated[list[dict[str, Any]], operator.add]
    answer: str


async def think(state: State, runtime: Runtime[RunContext]) -> State:
    """One reply of at most the attempt's `max_tokens`."""
    messages = tuple(to_message(message) for message in state["messages"])
    reply = (await lent(runtime).model.complete(Request(messages=messages))).message
    update: State = {"messages": [to_dict(reply)]}
    if _STATED.search(reply.content):
        update["answer"] = final_answer(reply.content)
    return update


async def force(state: State, runtime: Runtime[RunContext]) -> State:
    """The answer, now."""
    asked = Message(role="user", content=FORCE)
    messages = (*(to_message(message) for message in state["messages"]), asked)
    request = Request(messages=messages, sampling=Sampling(max_tokens=SHORT))
    reply = (await lent(runtime).model.complete(request)).message
    return {"messages": [to_dict(asked), to_dict(reply)], "answer": final_answer(reply.content)}


def _next(state: State) -> str:
    return END if "answer" in state else "force"


graph = (
    StateGraph(State, context_schema=RunContext)
    .add_node("think", think)
    .add_node("force", force)
    .add_edge(START, "think")
    .add_conditional_edges("think", _next, ["force", END])
    .add_edge("force", END)
    .compile(name="think_then_answer")
)
