"""Rollouts end to end on scripted models: the shipped agent, typed failures, limits, batches."""

from __future__ import annotations

import asyncio
import shutil
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from rollout_fixtures import add, attempt, rollouts

from agentloop.errors import BudgetReached, ModelError, SandboxError, StoreError
from agentloop.graphs.checkpoints import DeltaSaver
from agentloop.graphs.context import RunContext, lent
from agentloop.models.scripted import Scripted
from agentloop.records import (
    Completion,
    Episode,
    Limits,
    Message,
    Reason,
    Request,
    SandboxResult,
    ToolCall,
)
from agentloop.tools.code import PythonTool

CALL = 'I add.\n```add\n{"a": 2, "b": 3}\n```'


def failed(episode: Episode) -> Reason | None:
    return episode.failure.reason if episode.failure else None


def test_react_calls_a_tool_in_plain_text_and_answers() -> None:
    (episode,) = rollouts([CALL, "Answer: **5**."], [attempt(system="Use add.")])
    assert episode.failure is None and episode.answer == "5"
    assert episode.usage.calls == 2 and episode.seed == 1
    (trajectory,) = episode.trajectories
    assert [(node.message.role, node.message.content) for node in trajectory.nodes] == [
        ("system", "Use add."), ("user", "What is 2 + 3?"), ("assistant", CALL),
        ("user", "Output:\n5"), ("assistant", "Answer: **5**."),
    ]  # fmt: skip
    assert [node.sampled for node in trajectory.nodes] == [False, False, True, False, True]
    assert all(node.token_ids for node in trajectory.nodes[1:]) and trajectory.drift == 0


def test_react_calls_tools_natively() -> None:
    calls = (
        ToolCall(id="c1", name="add", arguments={"a": 2, "b": 3}),
        ToolCall(id="c2", name="nope", arguments={}),
        ToolCall(id="c3", name="add", arguments={"a": "x"}),
    )
    seen: list[Request] = []

    def reply(request: Request) -> Message | str:
        seen.append(request)
        if len(seen) == 1:
            return Message(role="assistant", content="", tool_calls=calls)
        return "Answer: 5"

    (episode,) = rollouts(reply, native_tools=True)
    assert episode.answer == "5"
    assert [tool.name for tool in seen[0].tools] == ["add"]
    assert seen[1].messages[1].tool_calls == calls
    results = {message.tool_call_id: message.content for message in seen[1].messages[2:]}
    assert results["c1"] == "5" and "no tool `nope`" in results["c2"]
    assert "a: " in results["c3"] and "b: " in results["c3"]


def test_a_wrong_text_call_is_told_to_the_model() -> None:
    seen: list[str] = []

    def reply(request: Request) -> str:
        seen.append(request.messages[-1].content)
        return "Answer: sorry" if len(seen) == 2 else "```add\nnot json\n```"

    (episode,) = rollouts(reply)
    assert episode.answer == "sorry" and "Field required" in seen[1]


class Broken:
    """A sandbox that cannot run code."""

    async def run(self, code: str) -> SandboxResult:
        raise SandboxError("the sandbox died")

    async def close(self) -> None:
        return None


def _raises(error: Exception) -> Any:
    def reply(request: Request) -> str:
        raise error

    return reply


@pytest.mark.parametrize(
    ("replies", "options", "reason"),
    [
        (lambda request: CALL, {"limits": Limits(turns=3)}, "turn_limit"),
        (lambda request: CALL, {"limits": Limits(turns=99, tokens=20)}, "token_limit"),
        (_raises(ModelError("too long", reason="context_overflow")), {}, "context_overflow"),
        (_raises(ModelError("down")), {}, "model_error"),
        (_raises(ValueError("line one\nline two")), {}, "graph_error"),
        (_raises(TimeoutError()), {}, "graph_error"),
        (["```python\n1\n```"], {"tools": (PythonTool(Broken()),)}, "sandbox_error"),
    ],
)
def test_failures_are_typed(replies: Any, options: dict[str, Any], reason: str) -> None:
    (episode,) = rollouts(replies, **options)
    assert failed(episode) == reason
    assert episode.failure is not None and "\n" not in episode.failure.detail
    assert episode.failure.detail


def test_what_was_sampled_before_a_failure_is_kept() -> None:
    (episode,) = rollouts(lambda request: CALL, limits=Limits(turns=2))
    assert sum(node.sampled for node in episode.trajectories[0].nodes) == 2
    assert episode.usage.calls == 2


def test_sixty_four_at_once_in_order() -> None:
    most, now = 0, 0
    crowded = asyncio.Event()

    class Waits:
        async def complete(self, request: Request) -> Completion:
            nonlocal most, now
            now += 1
            most = max(most, now)
            if now == 64:
                crowded.set()
            await asyncio.wait_for(crowded.wait(), 10)
            await asyncio.sleep(0.02)
            now -= 1
            number = request.messages[-1].content
            return await Scripted([f"Answer: {number}"]).complete(request)

    done: list[str] = []
    orders = [attempt(f"{n}") for n in range(130)]
    episodes = rollouts(Waits(), orders, on_done=lambda episode: done.append(episode.id))
    assert [episode.answer for episode in episodes] == [f"{n}" for n in range(130)]
    assert [episode.id for episode in episodes] == [order.id for order in orders]
    assert sorted(done) == sorted(order.id for order in orders)
    assert most == 64


def test_a_spent_budget_ends_the_run_after_bookkeeping() -> None:
    calls = 0

    def reply(request: Request) -> str:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise BudgetReached("the budget of $1 is spent")
        return "Answer: 1"

    done: list[Episode] = []
    with pytest.raises(BudgetReached, match="spent"):
        rollouts(reply, [attempt(f"{n}") for n in range(20)], concurrency=2, on_done=done.append)
    assert Counter(failed(episode) for episode in done) == {None: 3, "budget": 17}
    assert calls <= 5


def test_a_log_that_cannot_be_written_stops_the_run_at_once() -> None:
    model = Scripted(lambda request: "Answer: 1")

    def full(episode: Episode) -> None:
        raise StoreError("disk full")

    with pytest.raises(StoreError, match="disk full"):
        rollouts(model, [attempt(f"{n}") for n in range(50)], concurrency=1, on_done=full)
    assert model.calls == 1


def test_a_journal_that_cannot_be_written_stops_the_run_at_once() -> None:
    calls = []

    def reply(request: Request) -> str:
        calls.append(request)
        raise StoreError("the disk is full")

    done: list[Episode] = []
    orders = [attempt(f"{n}") for n in range(20)]
    with pytest.raises(StoreError, match="disk is full"):
        rollouts(reply, orders, concurrency=2, on_done=done.append)
    assert len(calls) <= 2 and done == []


def test_a_graph_that_hides_a_broken_journal_stops_the_run_too() -> None:
    calls = []

    async def stubborn(state: Any, runtime: Runtime[RunContext]) -> dict[str, Any]:
        for _ in range(5):
            with suppress(StoreError):
                await lent(runtime).model.complete(
                    Request(messages=(Message(role="user", content="x"),))
                )
        return {"answer": "hidden"}

    def reply(request: Request) -> str:
        calls.append(request)
        raise StoreError("the disk is full")

    with pytest.raises(StoreError, match="disk is full"):
        rollouts(reply, [attempt("a"), attempt("b")], graph=_single(stubborn), concurrency=1)
    assert len(calls) == 1


def test_a_checkpoint_that_cannot_be_written_stops_the_run_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "steps"

    def reply(request: Request) -> str:
        if folder.is_dir():
            shutil.rmtree(folder)
            folder.touch()  # no file can be made in it
        return "Answer: 1"

    model = Scripted(reply)
    orders = [attempt(f"{n}") for n in range(20)]
    with pytest.raises(StoreError, match="cannot be written"):
        rollouts(model, orders, concurrency=2, checkpoints=folder)
    assert model.calls <= 2


def test_a_graph_that_hides_a_limit_is_still_over_it() -> None:
    async def stubborn(state: Any, runtime: Runtime[RunContext]) -> dict[str, Any]:
        for _ in range(5):
            try:
                await lent(runtime).model.complete(
                    Request(messages=(Message(role="user", content="x"),))
                )
            except Exception as error:
                last = error
        return {"answer": f"hidden {last}"}

    graph = _single(stubborn)
    (episode,) = rollouts(lambda request: "y", graph=graph, limits=Limits(turns=2))
    assert failed(episode) == "turn_limit" and episode.answer is None


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ([ModelError("down")], "model_error"),
        ([ModelError("slow", reason="model_timeout"), None], None),
        ([None, ModelError("slow", reason="model_timeout")], "model_timeout"),
        ([ModelError("long", reason="context_overflow")], None),
    ],
)
def test_an_outage_that_a_graph_hides_is_no_result(
    faults: list[ModelError | None], reason: str | None
) -> None:
    async def brave(state: Any, runtime: Runtime[RunContext]) -> dict[str, Any]:
        for _ in range(len(faults)):
            with suppress(ModelError):
                await lent(runtime).model.complete(
                    Request(messages=(Message(role="user", content="x"),))
                )
        return {"answer": "I do not know"}

    left = list(faults)

    def reply(request: Request) -> str:
        if fault := left.pop(0):
            raise fault
        return "y"

    (episode,) = rollouts(reply, graph=_single(brave))
    assert failed(episode) == reason


class State(TypedDict, total=False):
    messages: list[Any]
    answer: str


def _single(node: Any) -> Any:
    builder = StateGraph(State, context_schema=RunContext)
    return builder.add_node("node", node).add_edge(START, "node").add_edge("node", END).compile()


def test_a_function_that_exits_ends_its_own_rollout_only() -> None:
    def exits(state: Any) -> dict[str, Any]:
        sys.exit(3)

    episodes = rollouts([], [attempt("one"), attempt("two")], graph=_single(exits))
    assert [failed(episode) for episode in episodes] == ["graph_error", "graph_error"]
    assert all("sys.exit(3)" in one.failure.detail for one in episodes if one.failure)


def test_a_loop_without_model_calls_ends() -> None:
    builder = StateGraph(State)
    builder.add_node("node", lambda state: {"answer": "x"})
    builder.add_edge(START, "node").add_edge("node", "node")
    (episode,) = rollouts([], graph=builder.compile(), limits=Limits(turns=1))
    assert failed(episode) == "turn_limit"


def test_a_graph_without_an_answer_says_so() -> None:
    (episode,) = rollouts([], graph=_single(lambda state: {"messages": []}))
    assert failed(episode) == "graph_error"
    assert episode.failure is not None and "`answer`" in episode.failure.detail


@dataclass
class Crafted:
    """Would tell when something constructs it."""

    value: int

    def __post_init__(self) -> None:
        BUILT.append(self.value)


BUILT: list[int] = []


def test_checkpoints_hold_the_conversation_and_never_the_expected_answer(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints"
    order = attempt(
        "What is 2 + 3?",
        expected="EXPECTED-SECRET",
        data={"hidden": "DATA-SECRET", "answer": ["DATA-SECRET"]},
    )
    for _ in range(2):  # a repeated attempt is found finished
        (episode,) = rollouts([CALL, "Answer: 5"], [order], checkpoints=path)
        assert episode.answer == "5" and len(episode.trajectories[0].nodes) == 4
    stored = b"".join(file.read_bytes() for file in path.iterdir())
    assert b"What is 2 + 3?" in stored and b"Output:" in stored
    assert b"SECRET" not in stored
    assert {one.config["configurable"]["thread_id"] for one in DeltaSaver(path).list(None)} == {
        order.id
    }


def test_an_unregistered_object_in_a_checkpoint_is_not_constructed(tmp_path: Path) -> None:
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

    kind, data = JsonPlusSerializer().dumps_typed(Crafted(7))
    BUILT.clear()
    JsonPlusSerializer(allowed_msgpack_modules=True).loads_typed((kind, data))
    assert BUILT == [7]  # the attack is real
    BUILT.clear()

    loaded = DeltaSaver(tmp_path).serde.loads_typed((kind, data))
    assert not isinstance(loaded, Crafted) and BUILT == []


def test_synchronous_nodes_of_a_whole_batch_wait_together() -> None:
    barrier = threading.Barrier(40)

    def node(state: Any) -> dict[str, Any]:
        barrier.wait(timeout=10)
        return {"answer": "together"}

    episodes = rollouts([], [attempt(f"{n}") for n in range(40)], graph=_single(node))
    assert {episode.answer for episode in episodes} == {"together"}


def test_the_cost_of_a_rollout_is_small(capsys: pytest.CaptureFixture[str]) -> None:
    def reply(request: Request) -> str:
        return "Answer: 5" if len(request.messages) > 2 else CALL

    rollouts(reply, [attempt("warm")])
    orders = [attempt(f"{n}") for n in range(100)]
    started = time.process_time()
    episodes = rollouts(reply, orders, tools=(add,))
    cost = (time.process_time() - started) / len(orders)
    assert all(episode.answer == "5" for episode in episodes)
    with capsys.disabled():
        print(f"[{1000 * cost:.1f} ms CPU per two-turn rollout]", end=" ")
    assert cost < 0.06, "four times the 15 ms it should be"
