"""A rollout run again on its record: identical, or the first difference is named."""

from __future__ import annotations

import asyncio
import operator
from dataclasses import replace
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from replay_fixtures import again, identical, record
from rollout_fixtures import attempt

from agentloop.errors import ModelError, ToolError
from agentloop.graphs.context import RunContext, lent
from agentloop.graphs.recorded import steps_of
from agentloop.records import Limits, Message, Request, Sampling
from agentloop.tools.spec import tool
from agentloop.workflows.rerun import first_difference


def adds(request: Request) -> str:
    if request.messages[-1].content.startswith("Output:"):
        return f"Answer: {request.messages[-1].content.split()[1]}"
    return '```add\n{"a": 2, "b": 3}\n```'


def test_what_a_tool_said_is_told_again_and_no_tool_runs() -> None:
    runs = []

    @tool
    def count(text: str) -> str:
        """How often it was called."""
        runs.append(text)
        return f"{len(runs)}"

    def reply(request: Request) -> str:
        if len(request.messages) < 4:
            return '```count\n{"text": "x"}\n```'
        return f"Answer: {request.messages[-1].content.split()[1]}"

    episode, kept = record(reply, tools=(count,))
    assert episode.answer == "2" and len(runs) == 2
    assert [one.text for one in episode.setup.results] == ["1", "2"]
    identical(episode, kept, tools=(count,))
    assert len(runs) == 2


def test_a_refusing_tool_refuses_again() -> None:
    @tool
    def refuse(text: str) -> str:
        """Never works."""
        raise ToolError(f"not {text}")

    def reply(request: Request) -> str:
        last = request.messages[-1].content
        return f"Answer: {last}" if "Error" in last else '```refuse\n{"text": "x"}\n```'

    episode, kept = record(reply, tools=(refuse,))
    assert [one.error for one in episode.setup.results] == ["tool"]
    identical(episode, kept, tools=(refuse,))


def test_other_arguments_are_told() -> None:
    def asks(request: Request) -> str:
        said = request.messages[-1].content
        return f"Answer: {said.split()[1]}" if said.startswith("Output:") else "go"

    def calling(b: int) -> Any:
        async def ask(state: Wide, runtime: Any) -> Wide:
            context = lent(runtime)
            said = await context.tools["add"].call({"a": 2, "b": b})
            request = Request(messages=(Message(role="user", content=f"Output: {said}"),))
            return {"answer": (await context.model.complete(request)).message.content}

        builder = StateGraph(Wide, context_schema=RunContext).add_node("ask", ask)
        return builder.add_edge(START, "ask").add_edge("ask", END).compile()

    episode, kept = record(asks, graph=calling(3))
    identical(episode, kept, graph=calling(3))
    _, difference = again(episode, kept, graph=calling(4))
    assert difference == "the agent calls the tool `add` with other arguments"


class Wide(TypedDict, total=False):
    messages: Annotated[list[dict[str, Any]], operator.add]
    said: list[str]
    answer: str


def wide(ask: int = 4, *, same: bool = False) -> Any:
    """Asks `ask` times at once, then once with what was said."""

    async def spread(state: Wide, runtime: Any) -> Wide:
        model = lent(runtime).model

        async def one(number: int) -> str:
            text = "again" if same else f"part {number}"
            request = Request(messages=(Message(role="user", content=text),))
            return (await model.complete(request)).message.content

        return {"said": list(await asyncio.gather(*(one(number) for number in range(ask))))}

    async def join(state: Wide, runtime: Any) -> Wide:
        request = Request(messages=(Message(role="user", content=" ".join(state["said"])),))
        return {"answer": (await lent(runtime).model.complete(request)).message.content}

    return (
        StateGraph(Wide, context_schema=RunContext)
        .add_node("spread", spread)
        .add_node("join", join)
        .add_edge(START, "spread")
        .add_edge("spread", "join")
        .add_edge("join", END)
        .compile(name="wide")
    )


@pytest.mark.parametrize("same", [False, True])
def test_calls_side_by_side_end_in_the_recorded_order(same: bool) -> None:
    graph = wide(same=same)

    def reply(request: Request) -> str:
        return f"reply to {request.messages[-1].content} with {request.sampling.seed}"

    episode, kept = record(
        reply, graph=graph, delay=lambda number: 0.04 - 0.01 * number, limits=Limits(seconds=20)
    )
    seeds = [node.sampling.seed for node in episode.trajectories[0].nodes if node.sampling]
    backwards = [one.key.partition("-")[0] for one in kept]
    assert backwards == ["3", "2", "1", "0", "4"] and len(set(seeds)) == 5
    identical(episode, kept, graph=graph)


def test_replies_that_read_the_same_are_told_to_those_who_asked() -> None:
    graph = wide()
    episode, kept = record(
        lambda request: "yes", graph=graph, delay=lambda number: 0.02 * (number % 2),
        attempts=[attempt(sampling=Sampling())],
    )  # fmt: skip
    identical(episode, kept, graph=graph)


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("model_error", ModelError("it is down")),
        ("context_overflow", ModelError("too long", reason="context_overflow")),
    ],
)
def test_an_outage_is_told_again(reason: str, error: ModelError) -> None:
    def reply(request: Request) -> str:
        if len(request.messages) > 1:
            raise error
        return adds(request)

    episode, kept = record(reply)
    assert episode.failure is not None and episode.failure.reason == reason
    identical(episode, kept)


def once(*texts: str) -> Any:
    """Asks each of `texts` until one brings a reply, as an agent with a fallback of its own."""

    async def ask(state: Wide, runtime: Any) -> Wide:
        for text in texts:
            try:
                request = Request(messages=(Message(role="user", content=text),))
                return {"answer": (await lent(runtime).model.complete(request)).message.content}
            except ModelError as error:
                failed = error
        raise failed

    builder = StateGraph(Wide, context_schema=RunContext).add_node("ask", ask)
    return builder.add_edge(START, "ask").add_edge("ask", END).compile()


def fails_on_long(request: Request) -> str:
    if len(request.messages[-1].content) > 4:
        raise ModelError(f"{request.messages[-1].content} is long", reason="context_overflow")
    return "short"


def test_a_call_that_failed_on_the_way_fails_again() -> None:
    episode, kept = record(fails_on_long, graph=once("too long", "ok"))
    assert episode.answer == "short" and episode.failure is None
    assert steps_of(episode, kept) == 2, "it may be forked after the second call"
    identical(episode, kept, graph=once("too long", "ok"))
    _, difference = again(episode, kept, graph=once("so very long", "ok"))
    assert difference == "call 1, which failed, asks something else"


def test_what_the_last_call_asked_is_compared_though_it_failed() -> None:
    episode, kept = record(fails_on_long, graph=once("too long"))
    assert episode.failure is not None and episode.failure.reason == "context_overflow"
    identical(episode, kept, graph=once("too long"))
    _, difference = again(episode, kept, graph=once("very long"))
    assert difference == "call 1, which failed, asks something else"
    _, difference = again(episode, kept, graph=once("too long", "ok"))
    assert difference == "the agent makes call 2, which is not in the record"


def test_limits_are_reached_again() -> None:
    episode, kept = record(
        lambda request: '```add\n{"a": 2, "b": 3}\n```', limits=Limits(turns=2, seconds=20)
    )
    assert episode.failure is not None and episode.failure.reason == "turn_limit"
    identical(episode, kept)


def test_a_record_without_its_journal_has_the_same_conversation() -> None:
    episode, _ = record(adds)
    made, difference = again(episode, [])
    assert difference == "" and made.trajectories == episode.trajectories
    assert first_difference(episode, made, usage=False) == ""
    assert "usage" in first_difference(episode, made)


def test_a_changed_agent_is_told_by_its_first_other_question() -> None:
    episode, kept = record(lambda request: f"so {request.messages[-1].content}", graph=wide(2))
    _, difference = again(episode, kept, graph=wide(3))
    assert difference == "call 3 asks something else: message 1 has another text"


def test_an_agent_that_asks_more_or_less_is_told() -> None:
    def asking(times: int) -> Any:
        async def ask(state: Wide, runtime: Any) -> Wide:
            model, messages = lent(runtime).model, [Message(role="user", content="first")]
            for _ in range(times):
                said = (await model.complete(Request(messages=tuple(messages)))).message
                messages += [said, Message(role="user", content="next")]
            return {"answer": said.content}

        builder = StateGraph(Wide, context_schema=RunContext).add_node("ask", ask)
        return builder.add_edge(START, "ask").add_edge("ask", END).compile()

    episode, kept = record(lambda request: "x", graph=asking(2))
    made, difference = again(episode, kept, graph=asking(3))
    assert difference == "the agent makes call 3, which is not in the record"
    made, difference = again(episode, kept, graph=asking(1))
    assert difference == ""
    assert first_difference(episode, made) == "the agent made 1 of 2 recorded calls"


def test_a_changed_answer_is_told() -> None:
    episode, _ = record(adds)
    said = first_difference(episode, replace(episode, answer="6"))
    assert said == "`answer` is `6` instead of `5`"
