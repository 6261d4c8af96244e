"""What counts on when a rollout that was cut off goes on: finished calls in any order, its time."""

from __future__ import annotations

import asyncio
import operator
import time
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from rollout_fixtures import attempt

from agentloop.graphs.context import RunContext, lent
from agentloop.graphs.run import Runner
from agentloop.models.journal import Journaled
from agentloop.records import Completion, Episode, Limits, Message, Request, Usage

ORDER = attempt("Count.")


class Counting:
    """Keeps the keys that it was asked under, without their digests."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    async def complete(self, request: Request) -> Completion:
        name, _, call = request.key.rpartition("/")
        self.keys.append(f"{name}/{call.partition('-')[0]}")
        return Completion(
            message=Message(role="assistant", content=f"{len(self.keys)}"), finish_reason="stop",
            model="m", usage=Usage(completion_tokens=1, calls=1),
        )  # fmt: skip


class Talk(TypedDict, total=False):
    messages: Annotated[list[dict[str, Any]], operator.add]
    answer: str


class Kept(dict[str, Completion]):
    """A journal."""

    def call(self, key: str) -> Completion | None:
        return self.get(key)

    async def add_call(self, key: str, completion: Completion) -> None:
        self[key] = completion

    def of(self, episode: str) -> list[str]:
        return [key.rpartition("/")[2] for key in self if key.startswith(f"{episode}/")]


def test_calls_of_nodes_side_by_side_are_found_in_whatever_order_they_come() -> None:
    journal, model = Kept(), Counting()

    def agent(order: list[str]) -> Any:
        def node(name: str) -> Any:
            async def run_it(state: Talk, runtime: Runtime[RunContext]) -> Talk:
                await asyncio.sleep(0.03 * order.index(name))
                for text in (name, name, f"{name} again"):  # the same twice: two samples
                    request = Request(messages=(Message(role="user", content=text),))
                    await lent(runtime).model.complete(request)
                    await asyncio.sleep(0.09)
                return {"messages": []}

            return run_it

        builder = StateGraph(Talk, context_schema=RunContext)
        builder.add_node("last", lambda state: {"answer": "done"})
        for name in ("a", "b", "c"):
            builder.add_node(name, node(name)).add_edge(START, name).add_edge(name, "last")
        return builder.add_edge("last", END).compile()

    def roll_out(order: list[str]) -> Episode:
        runner = Runner(agent(order), kept=journal.of)
        work = runner.run([ORDER], model=Journaled(model, journal), limits=Limits(turns=20))
        return asyncio.run(work)[0]

    def asked(episode: Episode) -> set[tuple[str, int | None]]:
        nodes = episode.trajectories[0].nodes
        return {
            (nodes[one.parent or 0].message.content, one.sampling.seed if one.sampling else None)
            for one in nodes if one.sampled
        }  # fmt: skip

    first = roll_out(["a", "b", "c"])
    assert first.failure is None and len(model.keys) == 9 == len(set(model.keys))
    again = roll_out(["c", "b", "a"])
    assert len(model.keys) == 9, "no finished call is paid twice"
    assert asked(again) == asked(first) and again.usage == first.usage
    lost = [key for key in journal if "/4-" in key or "/0-" in key]
    for key in lost:  # cut off: these had not finished
        del journal[key]
    roll_out(["b", "c", "a"])
    assert len(model.keys) == 11 and len(journal) == 9
    assert len({one.partition("-")[0] for one in journal.of(ORDER.id)}) == 9  # a number each


def test_what_is_asked_again_in_a_later_step_is_another_sample(tmp_path: Path) -> None:
    failures, journal, model = [ConnectionError("once")], Kept(), Counting()

    async def ask(state: Talk, runtime: Runtime[RunContext]) -> Talk:
        request = Request(messages=(Message(role="user", content="the same"),))
        await lent(runtime).model.complete(request)
        return {"messages": []}

    async def then(state: Talk, runtime: Runtime[RunContext]) -> Talk:
        if failures:
            raise failures.pop()
        await ask(state, runtime)
        return {"answer": "done"}

    builder = (
        StateGraph(Talk, context_schema=RunContext).add_node("ask", ask).add_node("then", then)
    )
    graph = builder.add_edge(START, "ask").add_edge("ask", "then").add_edge("then", END).compile()
    runner = Runner(graph, tmp_path, kept=journal.of)
    for _ in range(2):
        (episode,) = asyncio.run(runner.run([ORDER], model=Journaled(model, journal)))
    assert episode.answer == "done" and model.keys == [f"{ORDER.id}/0", f"{ORDER.id}/1"]


def waits(*, calls: bool = True, seconds: float = 30.0, beside: bool = False) -> Any:
    """A graph whose second node takes its time."""

    async def first(state: Talk, runtime: Runtime[RunContext]) -> Talk:
        if calls:
            messages = (Message(role="user", content="first"),)
            await lent(runtime).model.complete(Request(messages=messages))
        return {"messages": []}

    async def second(state: Talk) -> Talk:
        await asyncio.sleep(seconds)
        return {"messages": []}

    builder = StateGraph(Talk, context_schema=RunContext)
    builder.add_node("first", first).add_node("second", second)
    builder.add_node("last", lambda state: {"answer": "done"})
    builder.add_edge(START, "first").add_edge("first", "second").add_edge("second", "last")
    if beside:
        builder.add_node("other", second).add_edge("first", "other").add_edge("other", "last")
    return builder.add_edge("last", END).compile()


@pytest.mark.parametrize("beside", [False, True])  # with two nodes at once it is started over
def test_a_limit_of_time_counts_on_over_what_was_cut_off(tmp_path: Path, beside: bool) -> None:
    async def cut(seconds: float, limit: float) -> list[Episode]:
        runner = Runner(waits(beside=beside), tmp_path)
        given = asyncio.create_task(
            runner.run([ORDER], model=Counting(), limits=Limits(seconds=limit))
        )
        await asyncio.wait((given,), timeout=seconds)
        given.cancel()
        return await given

    begun = time.time()
    for _ in range(2):
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(cut(0.3, limit=30))
    before = time.monotonic()
    (episode,) = asyncio.run(cut(10, limit=1.0))
    assert episode.failure is not None and episode.failure.reason == "time_limit"
    assert time.monotonic() - before < 0.9 and 0.8 < episode.seconds < 1.5
    assert begun <= episode.started < begun + 0.3 and episode.usage.calls == 1
    before = time.monotonic()
    (episode,) = asyncio.run(cut(10, limit=0.7))  # tried again: all of its time
    assert episode.failure is not None and time.monotonic() - before >= 0.7


def test_of_a_process_that_was_killed_the_time_until_its_last_call_counts(tmp_path: Path) -> None:
    class Slow(Counting):
        async def complete(self, request: Request) -> Completion:
            await asyncio.sleep(0.3)
            return await super().complete(request)

    async def killed() -> None:
        work = asyncio.create_task(Runner(waits(), tmp_path).run([ORDER], model=Slow()))
        await asyncio.sleep(0.8)
        (file,) = tmp_path.iterdir()
        left = file.read_bytes()  # as `kill -9` leaves it
        work.cancel()
        await asyncio.wait((work,))
        file.write_bytes(left)

    asyncio.run(killed())
    runner = Runner(waits(seconds=0.1), tmp_path)
    (episode,) = asyncio.run(runner.run([ORDER], model=Slow()))
    assert episode.answer == "done" and 0.4 <= episode.seconds < 0.8
