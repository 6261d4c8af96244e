"""A rollout that was cut off goes on: its steps, its recorded calls, its numbers."""

from __future__ import annotations

import asyncio
import operator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from rollout_fixtures import add, attempt, react

from agentloop.graphs.checkpoints import DeltaSaver
from agentloop.graphs.context import RunContext, lent
from agentloop.graphs.resume import Notes
from agentloop.graphs.run import Runner
from agentloop.records import (
    Attempt,
    Completion,
    Episode,
    Limits,
    Message,
    Request,
    Sampling,
    ToolCall,
    Usage,
)
from agentloop.trajectories.redact import Redactor

ORDER = attempt("Count.")
SECRET = "correct-horse-battery"


class Counting:
    """Calls the tool twice, then answers; its ids spell the texts. Fails once at call `fail`."""

    def __init__(self, fail: int = -1) -> None:
        self.keys: list[str] = []
        self.fail = fail

    async def complete(self, request: Request) -> Completion:
        name, _, call = request.key.rpartition("/")
        self.keys.append(f"{name}/{call.partition('-')[0]}")
        if len(self.keys) == self.fail + 1:
            raise ConnectionError("once")
        turn = sum(message.role == "assistant" for message in request.messages)
        call = ToolCall(id=f"call-{turn}", name="add", arguments={"a": turn, "b": 1})
        text = f"Turn {turn}." if turn < 2 else "Answer: 3"
        prompt = tuple(ord(letter) for message in request.messages for letter in message.content)
        return Completion(
            message=Message(role="assistant", content=text, tool_calls=(call,) * (turn < 2)),
            finish_reason="stop", model="m", usage=Usage(completion_tokens=len(text), calls=1),
            prompt_ids=prompt, completion_ids=tuple(map(ord, text)), logprobs=(-0.5,) * len(text),
        )  # fmt: skip


def run(folder: Path, model: Any, graph: Any = None, order: Attempt = ORDER) -> Episode:
    runner = Runner(graph or react(), folder, native_tools=True)
    options: dict[str, Any] = {"model": model, "tools": [add], "limits": Limits(seconds=20)}
    (episode,) = asyncio.run(runner.run([order], **options))
    return replace(episode, started=0, seconds=0)


def test_cut_at_any_byte_it_ends_with_the_same_record(tmp_path: Path) -> None:
    model = Counting()
    whole = run(tmp_path, model)
    assert whole.answer == "3" and len(model.keys) == 3
    (file,) = tmp_path.iterdir()
    data = file.read_bytes()
    asked = set()
    for at in range(0, len(data) + 1, 131):
        file.write_bytes(data[:at])
        model = Counting()
        assert run(tmp_path, model) == whole, at
        assert model.keys == [f"{ORDER.id}/{number}" for number in range(3)][3 - len(model.keys) :]
        asked.add(len(model.keys))
    assert asked == {0, 1, 2, 3}


def test_a_step_that_failed_runs_again_under_the_next_number(tmp_path: Path) -> None:
    first = Counting(fail=1)
    assert run(tmp_path, first).failure is not None and len(first.keys) == 2
    second = Counting()
    episode = run(tmp_path, second)
    assert episode.answer == "3" and len(episode.trajectories[0].nodes) == 6
    assert second.keys == [f"{ORDER.id}/1", f"{ORDER.id}/2"]


def test_a_step_of_several_nodes_starts_the_rollout_over(tmp_path: Path) -> None:
    class State(TypedDict, total=False):
        messages: Annotated[list[dict[str, Any]], operator.add]
        answer: str

    ran: list[str] = []

    def node(name: str, *, last: bool = False) -> Any:
        async def run_it(state: State, runtime: Runtime[RunContext]) -> State:
            ran.append(name)
            messages = (Message(role="user", content=name),)
            await lent(runtime).model.complete(Request(messages=messages, sampling=Sampling()))
            if name == "slow" and ran.count(name) == 1:
                await asyncio.sleep(0.05)
                raise ConnectionError("once")
            return {"answer": "done"} if last else {"messages": []}

        return run_it

    builder = StateGraph(State, context_schema=RunContext)
    builder.add_node("fast", node("fast")).add_node("slow", node("slow"))
    builder.add_node("last", node("last", last=True))
    for name in ("fast", "slow"):
        builder.add_edge(START, name).add_edge(name, "last")
    graph = builder.add_edge("last", END).compile()
    assert run(tmp_path, Counting(), graph).failure is not None
    second = Counting()
    assert run(tmp_path, second, graph).answer == "done"
    assert sorted(ran) == ["fast", "fast", "last", "slow", "slow"]
    assert second.keys == [f"{ORDER.id}/{number}" for number in range(3)]


class Talk(TypedDict, total=False):
    messages: Annotated[list[dict[str, Any]], operator.add]
    plan: Any
    answer: str


def talk(second: str, ran: list[str], *, plan: Any = "a text", breaks: bool = False) -> Any:
    """A graph that calls its model and then fails or answers at a node named `second`."""

    async def first(state: Talk, runtime: Runtime[RunContext]) -> Talk:
        ran.append("model")
        messages = (Message(role="user", content=state["messages"][0]["content"]),)
        reply = await lent(runtime).model.complete(Request(messages=messages))
        said = {"role": "assistant", "content": reply.message.content}
        return {"messages": [said], "plan": plan}

    async def last(state: Talk) -> Talk:
        ran.append(second)
        if breaks:
            raise ConnectionError("once")
        return {"answer": f"by {state['plan']}"}

    builder = StateGraph(Talk, context_schema=RunContext)
    builder.add_node("model", first).add_node(second, last)
    builder.add_edge(START, "model").add_edge("model", second).add_edge(second, END)
    return builder.compile()


@dataclass
class Plan:
    steps: int


def test_steps_of_another_graph_are_not_gone_on_from(tmp_path: Path) -> None:
    ran: list[str] = []
    assert run(tmp_path, Counting(), talk("check", ran, breaks=True)).failure is not None
    episode = run(tmp_path, Counting(), talk("review", ran))
    assert ran == ["model", "check", "model", "review"]
    assert episode.answer == "by a text" and episode.usage.calls == 1


def test_steps_of_another_task_are_not_gone_on_from(tmp_path: Path) -> None:
    ran: list[str] = []
    one, other = (attempt(prompt, task_id="t") for prompt in ("Count.", "Count to ten."))
    assert one.id == other.id
    run(tmp_path, Counting(), talk("check", ran, breaks=True), one)
    episode = run(tmp_path, Counting(), talk("check", ran), other)
    assert episode.trajectories[0].nodes[0].message.content == "Count to ten."


def test_a_state_with_objects_that_are_not_made_on_loading_starts_over(tmp_path: Path) -> None:
    ran: list[str] = []
    run(tmp_path, Counting(), talk("check", ran, plan=Plan(3), breaks=True))
    episode = run(tmp_path, Counting(), talk("check", ran, plan=Plan(3)))
    assert episode.answer == "by Plan(steps=3)"
    assert ran == ["model", "check"] * 2


def test_nodes_side_by_side_in_a_subgraph_start_the_rollout_over(tmp_path: Path) -> None:
    failures = [ConnectionError("once")]

    def node(name: str) -> Any:
        async def run_it(state: Talk, runtime: Runtime[RunContext]) -> Talk:
            messages = (Message(role="user", content=name),)
            await lent(runtime).model.complete(Request(messages=messages))
            if name == "slow" and failures:
                await asyncio.sleep(0.05)
                raise failures.pop()
            return {"messages": []}

        return run_it

    inner = StateGraph(Talk, context_schema=RunContext)
    for name in ("fast", "slow"):
        inner.add_node(name, node(name)).add_edge(START, name).add_edge(name, END)
    outer = StateGraph(Talk, context_schema=RunContext)
    outer.add_node("inner", inner.compile()).add_node("last", lambda state: {"answer": "done"})
    outer.add_edge(START, "inner").add_edge("inner", "last").add_edge("last", END)
    graph = outer.compile()
    assert run(tmp_path, Counting(), graph).failure is not None
    episode = run(tmp_path, Counting(), graph)
    assert episode.answer == "done" and episode.usage.calls == 2


def test_calls_side_by_side_in_one_node_keep_their_numbers(tmp_path: Path) -> None:
    failures = [ConnectionError("once")]

    class Waits(Counting):
        async def complete(self, request: Request) -> Completion:
            await asyncio.sleep(0.05 if request.messages[-1].content == "slow" else 0)
            return await super().complete(request)

    async def both(state: Talk, runtime: Runtime[RunContext]) -> Talk:
        asked = [Request(messages=(Message(role="user", content=one),)) for one in ("slow", "fast")]
        await asyncio.gather(*(lent(runtime).model.complete(one) for one in asked))
        return {"messages": []}

    async def last(state: Talk, runtime: Runtime[RunContext]) -> Talk:
        if failures:
            raise failures.pop()
        request = Request(messages=(Message(role="user", content="last"),))
        await lent(runtime).model.complete(request)
        return {"answer": "done"}

    builder = StateGraph(Talk, context_schema=RunContext)
    builder.add_node("both", both).add_node("last", last)
    builder.add_edge(START, "both").add_edge("both", "last").add_edge("last", END)
    graph = builder.compile()
    assert run(tmp_path, Waits(), graph).failure is not None
    second = Waits()
    assert run(tmp_path, second, graph).usage.calls == 3
    assert second.keys == [f"{ORDER.id}/2"]


def test_a_number_of_any_size_is_kept(tmp_path: Path) -> None:
    class Large(Counting):
        async def complete(self, request: Request) -> Completion:
            made = await super().complete(request)
            calls = tuple(replace(one, arguments={"a": 10**40, "b": -(10**40)})
                          for one in made.message.tool_calls)  # fmt: skip
            return replace(made, message=replace(made.message, tool_calls=calls))

    whole = run(tmp_path, Large())
    assert whole.failure is None
    again = Large()
    assert run(tmp_path, again) == whole and again.keys == []


def test_ids_that_spell_a_secret_are_not_kept(tmp_path: Path) -> None:
    saver = DeltaSaver(tmp_path, redact=Redactor({"KEY": SECRET}))
    notes = Notes(saver, "t")

    async def call(text: str) -> None:
        request = Request(messages=(Message(role="user", content=text),), key="t/0")
        notes.add(request, await Counting().complete(request))

    asyncio.run(call("harmless"))
    asyncio.run(call(SECRET))
    asyncio.run(call("harmless again"))
    kept = [note["reply"].get("completion_ids") is not None for note in saver._file("t").notes]
    assert kept == [True, False, False]
    assert SECRET.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
