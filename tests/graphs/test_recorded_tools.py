"""Tools while a record is played: they give what they gave, and none of them runs."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import SystemMessage
from langchain_core.tools import tool as langchain_tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from replay_fixtures import again, identical, played, record

import agentloop
from agentloop.errors import ToolError
from agentloop.graphs.recorded import Kept
from agentloop.models.scripted import Scripted
from agentloop.records import Completion, Episode, Limits, Message, Request, ToolCall
from agentloop.tools.spec import tool
from agentloop.trajectories.codec import from_json, to_json
from agentloop.trajectories.redact import Redactor
from agentloop.workflows.rerun import first_difference

stock_runs: list[str] = []


@langchain_tool
def open_ticket(summary: str) -> str:
    """Open a ticket."""
    stock_runs.append(summary)
    return f"ticket {len(stock_runs)}"


def stock(tools: ToolNode | None = None) -> Any:
    """An agent whose tools are its own, in a `ToolNode`."""
    tools = tools or ToolNode([open_ticket])
    model = agentloop.chat_model().bind_tools([*tools.tools_by_name.values()])

    async def assistant(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke([SystemMessage("Desk."), *state["messages"]])]}

    return (
        StateGraph(MessagesState)
        .add_node("assistant", assistant)
        .add_node("tools", tools)
        .add_edge(START, "assistant")
        .add_conditional_edges("assistant", tools_condition)
        .add_edge("tools", "assistant")
        .compile()
    )


def two_tickets(request: Request) -> Message | str:
    said = [one for one in request.messages if one.role == "tool"]
    if said:
        return f"Answer: {said[-1].content}"
    calls = tuple(
        ToolCall(id=f"c{number}", name="open_ticket", arguments={"summary": f"s{number}"})
        for number in range(2)
    )
    return Message(role="assistant", content="", tool_calls=calls)


def test_tools_of_the_agents_own_are_answered_by_the_id_of_the_call() -> None:
    stock_runs.clear()
    episode, kept = record(two_tickets, graph=stock(), native_tools=True, tools=())
    assert "ticket" in str(episode.answer) and len(stock_runs) == 2
    assert set(episode.setup.offered) == {"open_ticket"} and episode.setup.tools == {}
    identical(episode, kept, graph=stock(), tools=())
    assert len(stock_runs) == 2, "the tool ran"


def inside(*, callbacks: bool = False, by_hand: bool = False) -> Any:
    """An agent that invokes another graph, or its tool, in the code of a node."""
    inner = stock()

    async def assistant(state: MessagesState) -> dict[str, Any]:
        if by_hand:
            await agentloop.chat_model().ainvoke(state["messages"])
            return {"messages": [("assistant", await open_ticket.ainvoke({"summary": "x"}))]}
        config: Any = {"callbacks": []} if callbacks else None
        done = await inner.ainvoke({"messages": state["messages"]}, config)
        return {"messages": done["messages"][-1:]}

    return (
        StateGraph(MessagesState)
        .add_node("assistant", assistant)
        .add_edge(START, "assistant")
        .add_edge("assistant", END)
        .compile()
    )


@pytest.mark.parametrize("how", [{}, {"callbacks": True}, {"by_hand": True}])
def test_a_tool_that_nobody_answers_for_does_not_run(how: dict[str, bool]) -> None:
    stock_runs.clear()
    episode, kept = record(two_tickets, graph=inside(**how), native_tools=True, tools=())
    runs = len(stock_runs)
    assert runs and episode.failure is None
    _, model = played(episode, kept, inside(**how))
    assert len(stock_runs) == runs, "the tool ran"
    assert model.missing == (
        "the agent runs its tool `open_ticket` by itself, and what that gave was not kept"
    )


def three_turns(request: Request) -> Message | str:
    said = [one for one in request.messages if one.role == "tool"]
    if len(said) == 2:
        return f"Answer: {said[-1].content}"
    call = ToolCall(id=f"c{len(said)}", name="open_ticket", arguments={"summary": "s"})
    return Message(role="assistant", content="", tool_calls=(call,))


@pytest.mark.parametrize("sync", [False, True])
def test_a_fork_runs_tools_as_the_agent_wraps_them(sync: bool) -> None:
    wrapped: list[str] = []

    def wrap(request: Any, execute: Any) -> Any:
        wrapped.append(request.tool_call["id"])
        return execute(request)

    async def awrap(request: Any, execute: Any) -> Any:
        wrapped.append(request.tool_call["id"])
        return await execute(request)

    given: dict[str, Any] = {"wrap_tool_call": wrap} if sync else {"awrap_tool_call": awrap}
    graph = stock(Loud([open_ticket], **given))
    stock_runs.clear()
    episode, kept = record(three_turns, graph=graph, native_tools=True, tools=())
    assert wrapped == ["c0", "c1"] and episode.answer == "ticket 2!"
    identical(episode, kept, graph=graph, tools=())
    assert len(wrapped) == 2, "what the wrapper made of it is in the record"
    made, model = played(episode, kept, graph, until=1, live=Scripted(three_turns))
    assert model.difference == model.missing == ""
    assert wrapped == ["c0", "c1", "c1"] and made.answer == "ticket 3!"


class Loud(ToolNode):
    """A user's own kind of node."""

    def _combine_tool_outputs(self, outputs: Any, input_type: Any) -> Any:
        for one in outputs:
            one.content = one.content.removesuffix("!") + "!"
        return super()._combine_tool_outputs(outputs, input_type)


@langchain_tool
def refuse(summary: str) -> str:
    """Never works."""
    raise ToolError(f"not {summary}")


def one_refusal(request: Request) -> Message:
    call = ToolCall(id="c", name="refuse", arguments={"summary": "s"})
    return Message(role="assistant", content="", tool_calls=(call,))


def test_a_tool_of_the_agents_own_that_ended_it_ends_it_again() -> None:
    graph = stock(ToolNode([refuse]))
    episode, kept = record(one_refusal, graph=graph, native_tools=True, tools=())
    assert episode.failure is not None and episode.failure.reason == "tool_error"
    identical(episode, kept, graph=graph, tools=())


def test_what_was_not_kept_is_told_apart_from_a_difference() -> None:
    options: dict[str, Any] = {"native_tools": True, "tools": (), "limits": Limits(turns=1)}
    episode, kept = record(two_tickets, graph=stock(), **options)
    assert episode.failure is not None and episode.failure.reason == "turn_limit"
    stock_runs.clear()
    _, model = played(episode, kept, stock())
    assert model.missing == "the agent calls its tool `open_ticket`, whose result was not kept"
    assert model.difference == "" and stock_runs == []


def test_a_secret_in_a_tools_arguments_is_no_difference() -> None:
    @tool
    def login(word: str) -> str:
        """Takes a word."""
        return "in"

    def reply(request: Request) -> str:
        if request.messages[-1].content.startswith("Output:"):
            return "Answer: in"
        return f'```login\n{{"word": "{word}"}}\n```'

    word = "hunter2-is-the-password"
    episode, kept = record(reply, tools=(login,))
    made, difference = again(*redacted(episode, kept, word), tools=(login,))
    assert difference == "" and first_difference(redacted(episode, kept, word)[0], made) == ""


def redacted(episode: Episode, kept: list[Kept], word: str) -> tuple[Episode, list[Kept]]:
    """As the log has them."""
    redact = Redactor({"API_KEY": word})
    bodies = [redact(to_json(one.completion)) for one in kept]
    replies = [from_json(Completion, body) for body in bodies]
    keys = [one.key for one in kept]
    return from_json(Episode, redact(to_json(episode))), list(map(Kept, keys, replies))
