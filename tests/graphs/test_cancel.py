"""Deadlines and cancellation of whole runs: nothing keeps running, what was finished is kept."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from rollout_fixtures import add, attempt, react, rollouts

from agentloop.graphs.context import RunContext, lent
from agentloop.graphs.run import Runner
from agentloop.models.scripted import Scripted
from agentloop.records import Completion, Episode, Limits, Message, Reason, Request

CALL = 'I add.\n```add\n{"a": 2, "b": 3}\n```'


def failed(episode: Episode) -> Reason | None:
    return episode.failure.reason if episode.failure else None


def single(node: Any) -> Any:
    builder = StateGraph(dict, context_schema=RunContext)
    return builder.add_node("node", node).add_edge(START, "node").add_edge("node", END).compile()


class Slow:
    """Never replies; knows how many calls are running."""

    running = 0

    async def complete(self, request: Request) -> Completion:
        self.running += 1
        try:
            await asyncio.sleep(60)
        finally:
            self.running -= 1
        raise AssertionError


def test_a_deadline_ends_everything() -> None:
    model = Slow()

    async def main() -> list[Episode]:
        runner = Runner(react(), native_tools=False)
        many = [attempt(sample=n) for n in range(5)]
        episodes = await runner.run(many, model=model, tools=(), limits=Limits(seconds=0.1))
        assert model.running == 0 and len(asyncio.all_tasks()) == 1
        return episodes

    started = time.monotonic()
    assert [failed(episode) for episode in asyncio.run(main())] == ["time_limit"] * 5
    assert time.monotonic() - started < 4


def test_cancelling_a_run_leaves_nothing_running() -> None:
    model = Slow()
    done: list[Episode] = []

    async def main() -> None:
        runner = Runner(react())
        orders = [attempt(sample=n) for n in range(3)]
        limits = Limits(seconds=1)
        run = runner.run(orders, model=model, limits=limits, concurrency=1, on_done=done.append)
        task = asyncio.create_task(run)
        while not model.running:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert model.running == 0 and len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert done == []  # none had recorded anything, and no other was started


def test_a_cancelled_run_keeps_what_was_finished_and_what_had_begun() -> None:
    async def main() -> list[Episode]:
        done: list[Episode] = []
        blocked = asyncio.Event()

        class Half:
            async def complete(self, request: Request) -> Completion:
                if len(request.messages) > 2 and "2" in request.messages[0].content:
                    blocked.set()
                    await asyncio.sleep(60)
                text = CALL if len(request.messages) < 3 else "Answer: 5"
                return await Scripted([text]).complete(request)

        runner = Runner(react(), native_tools=False)
        orders = [attempt(f"task {n}") for n in range(4)]
        task = asyncio.create_task(
            runner.run(orders, model=Half(), tools=(add,), concurrency=1, on_done=done.append)
        )
        await blocked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1
        return done

    episodes = asyncio.run(main())
    assert [failed(episode) for episode in episodes] == [None, None, "cancelled"]
    assert [len(episode.trajectories[0].nodes) for episode in episodes] == [4, 4, 2]


def test_a_node_that_swallows_its_cancellation_cannot_hold_up_the_batch() -> None:
    async def deaf(state: Any) -> dict[str, Any]:
        until = time.monotonic() + 3
        while time.monotonic() < until:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue
        return {"answer": "late"}

    async def main() -> float:
        started = time.monotonic()
        runner = Runner(single(deaf))
        (episode,) = await runner.run([attempt()], model=Scripted([]), limits=Limits(seconds=0.1))
        assert failed(episode) == "time_limit"
        spent = time.monotonic() - started
        await asyncio.sleep(max(0.0, 3.2 - spent))  # or the loop would wait for it when it closes
        return spent

    assert asyncio.run(main()) < 2.1, "deadline + 1 s, and a busy machine"


def test_a_call_left_behind_by_a_node_ends_with_its_rollout() -> None:
    model, left = Slow(), []

    async def careless(state: Any, runtime: Runtime[RunContext]) -> dict[str, Any]:
        request = Request(messages=(Message(role="user", content="x"),))
        left.append(asyncio.create_task(lent(runtime).model.complete(request)))
        while not model.running:
            await asyncio.sleep(0.01)
        return {"answer": "x"}

    async def main() -> None:
        (episode,) = await Runner(single(careless)).run([attempt()], model=model)
        assert episode.answer == "x"
        assert model.running == 0 and len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert left[0].cancelled()


def test_a_run_cancelled_while_the_last_calls_end_leaves_no_graph_behind() -> None:
    class Lingers:
        async def complete(self, request: Request) -> Completion:
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.3)
            raise AssertionError

    async def node(state: Any, runtime: Runtime[RunContext]) -> dict[str, Any]:
        request = Request(messages=(Message(role="user", content="x"),))
        call = asyncio.create_task(lent(runtime).model.complete(request))
        await asyncio.sleep(60)
        await call
        raise AssertionError

    async def main() -> None:
        run = Runner(single(node)).run([attempt()], model=Lingers(), limits=Limits(seconds=0.2))
        task = asyncio.create_task(run)
        await asyncio.sleep(0.3)  # after the deadline, while the call takes its time to end
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.5)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_samples_of_a_task_start_together() -> None:
    asked: list[str] = []

    class Notes:
        async def complete(self, request: Request) -> Completion:
            asked.append(request.messages[-1].content)
            await asyncio.sleep(0.01)
            return await Scripted(["Answer: 1"]).complete(request)

    orders = [attempt(f"{task}", sample=n) for task in range(6) for n in range(4)]
    episodes = rollouts(Notes(), orders, concurrency=4)
    assert asked == [f"{task}" for task in range(6) for _ in range(4)]
    assert [episode.sample for episode in episodes] == [0, 1, 2, 3] * 6


@pytest.mark.parametrize("first", [0, 700, 50_000])
def test_the_collectors_threshold_is_raised_while_rollouts_run(first: int) -> None:
    seen: list[int] = []
    before = gc.get_threshold()
    gc.set_threshold(first, *before[1:])
    try:
        rollouts(lambda request: seen.append(gc.get_threshold()[0]) or "Answer: 1")
        assert gc.get_threshold()[0] == first
    finally:
        gc.set_threshold(*before)
    assert seen == [10_000 if first == 700 else first]
