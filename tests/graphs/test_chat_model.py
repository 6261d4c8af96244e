"""`agentloop.chat_model()` in agents that know nothing of agentloop."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool as langchain_tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, create_react_agent, tools_condition
from rollout_fixtures import attempt, rollouts

import agentloop
from agentloop.errors import UsageError
from agentloop.graphs.messages import to_dict, to_message
from agentloop.models.scripted import Scripted
from agentloop.records import Completion, Limits, Message, Request, Sampling, ToolCall


@langchain_tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def stock_agent(*, sync: bool) -> Any:
    """What a LangGraph tutorial writes, with the chat model replaced."""
    model = agentloop.chat_model(max_tokens=50).bind_tools([multiply])

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke([SystemMessage("own"), *state["messages"]])]}

    async def aanswer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke([SystemMessage("own"), *state["messages"]])]}

    builder = StateGraph(MessagesState)
    builder.add_node("model", answer if sync else aanswer)
    builder.add_node("tools", ToolNode([multiply]))
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "model")
    return builder.compile()


def of_one(node: Any) -> Any:
    """A graph of that node alone."""
    builder = StateGraph(MessagesState)
    builder.add_node("node", node)
    return builder.add_edge(START, "node").add_edge("node", END).compile()


class Multiplies:
    """Calls the tool once, then answers with its result."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        last = request.messages[-1]
        call = ToolCall(id="c1", name="multiply", arguments={"a": 6, "b": 7})
        reply = (
            Message(role="assistant", content=f"Answer: {last.content}")
            if last.role == "tool"
            else Message(role="assistant", content="", tool_calls=(call,))
        )
        return await Scripted([reply]).complete(request)


@pytest.mark.parametrize("sync", [True, False])
def test_a_stock_agent_runs_unchanged(sync: bool) -> None:
    model = Multiplies()
    order = attempt("6 * 7?", system="given", sampling=Sampling(temperature=0.5, seed=3))
    (episode,) = rollouts(model, [order], graph=stock_agent(sync=sync))
    assert episode.failure is None and episode.answer == "42"
    first, second = model.requests
    assert [message.content for message in first.messages] == ["given\n\nown", "6 * 7?"]
    assert first.sampling.max_tokens == 50 and first.sampling.temperature == 0.5
    (offered,) = first.tools
    assert offered.name == "multiply" and offered.description == "Multiply two numbers."
    assert set(offered.parameters["properties"]) == {"a", "b"}  # type: ignore[arg-type]
    assert second.messages[2].tool_calls == model_calls() and second.messages[3].content == "42"
    assert second.messages[2].token_ids  # continued with the ids that were sampled
    (trajectory,) = episode.trajectories
    assert len(trajectory.nodes) == 5 and trajectory.drift == 0


def model_calls() -> tuple[ToolCall, ...]:
    return (ToolCall(id="c1", name="multiply", arguments={"a": 6, "b": 7}),)


def test_many_synchronous_agents_at_once() -> None:
    model = Multiplies()
    orders = [attempt(f"{n}") for n in range(64)]
    episodes = rollouts(model, orders, graph=stock_agent(sync=True))
    assert {episode.answer for episode in episodes} == {"42"} and len(model.requests) == 128


def test_a_synchronous_node_may_run_a_loop_of_its_own() -> None:
    """Calls wait for each other's turn; that is of one loop, and none would ever be woken."""

    class Shared(Multiplies):
        def __init__(self) -> None:
            super().__init__()
            self.turn = asyncio.Semaphore(1)
            self.loops: set[asyncio.AbstractEventLoop] = set()

        async def complete(self, request: Request) -> Completion:
            async with self.turn:
                self.loops.add(asyncio.get_running_loop())
                await asyncio.sleep(0.01)
                return await super().complete(request)

    model = agentloop.chat_model().bind_tools([multiply])

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [asyncio.run(model.ainvoke(state["messages"]))]}

    builder = StateGraph(MessagesState)
    builder.add_node("model", answer).add_node("tools", ToolNode([multiply]))
    builder.add_edge(START, "model").add_edge("tools", "model")
    builder.add_conditional_edges("model", tools_condition)
    shared = Shared()
    orders = [attempt(f"{n}") for n in range(16)]
    episodes = rollouts(shared, orders, graph=builder.compile())
    assert [episode.failure for episode in episodes] == [None] * 16
    assert {episode.answer for episode in episodes} == {"42"} and len(shared.loops) == 1


@pytest.mark.filterwarnings("ignore")
def test_a_prebuilt_agent_runs() -> None:
    agent = create_react_agent(agentloop.chat_model(), [multiply], prompt="own")
    (episode,) = rollouts(Multiplies(), [attempt(system="given")], graph=agent)
    assert episode.answer == "42"


def test_limits_hold_in_a_stock_agent() -> None:
    class Forever(Multiplies):
        async def complete(self, request: Request) -> Completion:
            short = Request(messages=request.messages[:2])
            return await super().complete(short)

    (episode,) = rollouts(Forever(), graph=stock_agent(sync=True), limits=Limits(turns=3))
    assert episode.failure is not None and episode.failure.reason == "turn_limit"


def test_a_deadline_frees_a_synchronous_node() -> None:
    class Hangs:
        async def complete(self, request: Request) -> Completion:
            import asyncio

            await asyncio.sleep(60)
            raise AssertionError

    started = time.monotonic()
    (episode,) = rollouts(Hangs(), graph=stock_agent(sync=True), limits=Limits(seconds=0.1))
    assert episode.failure is not None and episode.failure.reason == "time_limit"
    assert time.monotonic() - started < 5  # the thread that waited has ended as well


def test_a_blocking_call_in_an_async_node_is_explained() -> None:
    model = agentloop.chat_model()

    async def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    (episode,) = rollouts(["x"], graph=of_one(node))
    assert episode.failure is not None and "ainvoke" in episode.failure.detail


def test_usage_and_stop_reach_both_sides() -> None:
    seen: list[Request] = []
    kept: list[AIMessage] = []
    model = agentloop.chat_model(stop=["a"], temperature=0.3)

    async def node(state: MessagesState) -> dict[str, Any]:
        kept.append(await model.ainvoke(state["messages"], stop=["b"]))
        return {"messages": kept}

    def reply(request: Request) -> str:
        seen.append(request)
        return "Answer: one two"

    (episode,) = rollouts(reply, graph=of_one(node))
    assert episode.answer == "one two"
    assert seen[0].sampling.stop == ("a", "b") and seen[0].sampling.temperature == 0.3
    assert kept[0].usage_metadata == {"input_tokens": 5, "output_tokens": 3, "total_tokens": 8}
    assert kept[0].response_metadata["finish_reason"] == "stop"


def test_what_the_agent_gives_wins_also_where_it_is_the_default() -> None:
    seen: list[Request] = []

    async def node(state: MessagesState) -> dict[str, Any]:
        model = agentloop.chat_model(temperature=0.0, max_tokens=256)
        await model.ainvoke(state["messages"])
        await agentloop.chat_model().ainvoke(state["messages"])
        return {"messages": [await model.ainvoke(state["messages"], temperature=1.0, top_p=1.0)]}

    def reply(request: Request) -> str:
        seen.append(request)
        return "Answer: x"

    given = Sampling(temperature=0.9, top_p=0.5, max_tokens=32, stop=("X",))
    rollouts(reply, [attempt(sampling=given)], graph=of_one(node))
    assert [one.sampling for one in seen] == [
        replace(given, temperature=0.0, max_tokens=256), given,
        replace(given, temperature=1.0, max_tokens=256, top_p=1.0),
    ]  # fmt: skip


def test_a_tool_choice_narrows_what_is_offered() -> None:
    def subtract(a: int, b: int) -> int:
        """Subtract."""
        return a - b

    both = agentloop.chat_model().bind_tools([multiply, subtract])
    one = agentloop.chat_model().bind_tools([multiply, subtract], tool_choice="subtract")
    names = [
        [tool["function"]["name"] for tool in bound.kwargs["tools"]]  # type: ignore[attr-defined]
        for bound in (both, one)
    ]
    assert names == [["multiply", "subtract"], ["subtract"]]


def test_outside_a_rollout_it_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="agentloop run"):
        agentloop.chat_model().invoke("hi")


@pytest.mark.parametrize(
    "message",
    [
        Message(role="user", content="u", name="n"),
        Message(role="assistant", content="", tool_calls=model_calls()),
        Message(role="tool", content="42", tool_call_id="c1"),
    ],
)
def test_messages_survive_json_and_langchain(message: Message) -> None:
    from langchain_core.messages import convert_to_messages

    assert to_message(to_dict(message)) == message
    assert to_message(convert_to_messages([to_dict(message)])[0]) == message


def test_odd_messages() -> None:
    blocks = HumanMessage([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])
    assert to_message(blocks).content == "ab"
    assert to_message(("user", "hi")) == Message(role="user", content="hi")
    assert to_message(ToolMessage("r", tool_call_id="1")).tool_call_id == "1"
    for wrong in (3, {"content": "no role"}, {"role": "nobody", "content": "x"}):
        with pytest.raises(UsageError, match="not a chat message"):
            to_message(wrong)


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
ASKED = [{"type": "text", "text": "what is this"}, IMAGE]


@pytest.mark.parametrize(
    "message",
    [
        HumanMessage(ASKED), ToolMessage([IMAGE], tool_call_id="1"), ("user", [IMAGE]),
        {"role": "user", "content": ASKED}, {"role": "user", "content": [IMAGE]},
        AIMessage([{"type": "refusal", "refusal": "no"}]),
        HumanMessage([{"type": "reasoning", "reasoning": "hm"}]), HumanMessage([{"text": 3}]),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_by_name_and_not_lost(message: Any) -> None:
    with pytest.raises(UsageError, match=r"part of type `\w+`"):
        to_message(message)


def test_thoughts_and_calls_among_the_parts_are_no_text() -> None:
    call = {"name": "multiply", "args": {"a": 6, "b": 7}, "id": "c1"}
    said = AIMessage(
        [{"type": "thinking", "thinking": "hm"}, "one ", {"type": "text", "text": "two"},
         {"type": "tool_use", "id": "c1", "name": "multiply", "input": {"a": 6, "b": 7}}],
        tool_calls=[call],
    )  # fmt: skip
    made = to_message(said)
    assert made.content == "one two" and made.tool_calls == model_calls()


def test_an_agent_that_shows_an_image_fails_with_the_reason() -> None:
    async def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await agentloop.chat_model().ainvoke([HumanMessage(ASKED)])]}

    (episode,) = rollouts(["x"], graph=of_one(node))
    assert episode.failure is not None and "`image_url`" in episode.failure.detail


@pytest.mark.parametrize("call", [{"id": "1"}, {"function": {"arguments": "{}"}}, "multiply", None])
def test_a_call_without_a_name_is_refused(call: Any) -> None:
    with pytest.raises(UsageError, match="is not a tool call"):
        to_message({"role": "assistant", "content": "", "tool_calls": [call]})


@pytest.mark.parametrize("written", ["[1]", '{"a": NaN}', "{"])
def test_a_calls_arguments_are_read_as_the_transports_read_them(written: str) -> None:
    call = {"id": 1, "function": {"name": "multiply", "arguments": written}}
    said = to_message({"role": "assistant", "content": None, "tool_calls": [call]})
    assert said.tool_calls == (ToolCall(id="1", name="multiply", arguments={"_unparsed": written}),)
    assert to_message(to_dict(said)) == said
    spoilt = {"name": "multiply", "args": written, "id": "1", "error": "not JSON"}
    assert to_message(AIMessage("", invalid_tool_calls=[spoilt])) == said
    assert to_message({"role": "tool", "content": "x", "tool_call_id": 1}).tool_call_id == "1"
    call["function"] = {"name": "multiply", "arguments": [1]}
    with pytest.raises(UsageError, match="must be an object"):
        to_message({"role": "assistant", "content": None, "tool_calls": [call]})


def test_threads_of_the_agents_own_are_told_how_to_call_their_model() -> None:
    def agent(*, carried: bool) -> Any:
        def node(state: MessagesState) -> dict[str, Any]:
            call = partial(agentloop.chat_model().invoke, state["messages"])
            with ThreadPoolExecutor(1) as pool:
                work = (copy_context().run, call) if carried else (call,)
                return {"messages": [pool.submit(*work).result()]}

        builder = StateGraph(MessagesState)
        builder.add_node("node", node)
        return builder.add_edge(START, "node").add_edge("node", END).compile()

    (episode,) = rollouts(["Answer: x"], graph=agent(carried=False))
    assert episode.failure is not None and "copy_context" in episode.failure.detail
    (episode,) = rollouts(["Answer: x"], graph=agent(carried=True))
    assert episode.answer == "x"
