"""A rollout's limit of time, and the queue that is nobody's slowness."""

import asyncio
from typing import Any

import pytest
from langgraph.graph import END, START, MessagesState, StateGraph

from agentloop import chat_model
from agentloop.deadline import Clock, off_the_clock
from agentloop.errors import ModelError
from agentloop.graphs.run import Runner
from agentloop.models.limits import Limited, Rate
from agentloop.models.scripted import Scripted
from agentloop.records import Attempt, Completion, Limits, Request, Sampling, Task


def one_call() -> Any:
    """A graph that asks its model once."""

    async def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await chat_model().ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("ask", ask)
    builder.add_edge(START, "ask")
    builder.add_edge("ask", END)
    return builder.compile()


class Slow:
    """A model that takes so long for a reply."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.model = seconds, Scripted(["Answer: 1"] * 9)

    async def complete(self, request: Request) -> Completion:
        await asyncio.sleep(self.seconds)
        return await self.model.complete(request)


def attempt(number: int) -> Attempt:
    return Attempt(
        task=Task(id=f"t{number}", prompt="1?"), bundle="b", system="", sampling=Sampling(),
        purpose="serve", run="r",
    )  # fmt: skip


def rollouts(model: Any, count: int, seconds: float) -> list[str]:
    runner = Runner(one_call())
    order = [attempt(number) for number in range(count)]
    episodes = asyncio.run(runner.run(order, model=model, limits=Limits(seconds=seconds)))
    return [one.failure.reason if one.failure else "" for one in episodes]


def test_waiting_for_a_turn_is_not_the_rollouts_time() -> None:
    queued = Limited(Slow(0.2), Rate(in_flight=1))
    assert rollouts(queued, 5, 0.6) == [""] * 5
    assert rollouts(Slow(0.9), 2, 0.6) == ["time_limit"] * 2


def test_a_clock_stands_still_while_any_call_waits() -> None:
    async def measure() -> float:
        clock = Clock()

        async def wait(seconds: float) -> None:
            with clock.running(), off_the_clock():
                await asyncio.sleep(seconds)

        await asyncio.gather(wait(0.1), wait(0.2))
        before = clock.seconds()
        await asyncio.sleep(0.1)
        assert clock.seconds() >= before + 0.09
        return before

    assert asyncio.run(measure()) < 0.05


def test_an_error_in_the_queue_starts_the_clock_again() -> None:
    clock = Clock()
    with pytest.raises(ModelError), clock.running(), off_the_clock():
        raise ModelError("no turn", reason="rate_limit")
    before = clock.seconds()
    asyncio.run(asyncio.sleep(0.02))
    assert clock.seconds() > before
