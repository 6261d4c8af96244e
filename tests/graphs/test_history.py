"""A rollout that is a turn of a conversation: what was said before goes to the agent."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from agentloop.graphs.load import Graph, load_graph
from agentloop.graphs.program import program_graph
from agentloop.graphs.run import Runner
from agentloop.models.scripted import Scripted
from agentloop.ports import Model
from agentloop.records import Attempt, Episode, Message, Request, Sampling, Task

ROOT = Path(__file__).resolve().parents[2]
HISTORY = (
    Message(role="system", content="You are terse."),
    Message(role="user", content="2 + 3?"),
    Message(role="assistant", content="5"),
)
ALONE = Attempt(
    task=Task(id="t", prompt="And 4 more?"), bundle="b", system="Be brief.",
    sampling=Sampling(), purpose="serve", run="r",
)  # fmt: skip
TURN = replace(ALONE, history=HISTORY)


def roll_out(graph: Graph, model: Model, attempt: Attempt) -> Episode:
    [episode] = asyncio.run(Runner(graph).run([attempt], model=model))
    return episode


def test_a_graph_gets_the_conversation_and_the_bundle_comes_first() -> None:
    seen: list[Request] = []

    def reply(request: Request) -> str:
        seen.append(request)
        return "9"

    episode = roll_out(load_graph("react", [ROOT], ROOT), Scripted(reply), TURN)
    assert episode.answer == "9" and episode.task.prompt == "And 4 more?"
    assert [(m.role, m.content) for m in seen[0].messages] == [
        ("system", "Be brief.\n\nYou are terse."), ("user", "2 + 3?"), ("assistant", "5"),
        ("user", "And 4 more?"),
    ]  # fmt: skip


def test_a_program_reads_it_as_one_text() -> None:
    tasks: list[str] = []

    async def drive(name: str, task: str, model: Model) -> str:
        tasks.append(task)
        return "9"

    for attempt in (TURN, ALONE):
        assert roll_out(program_graph(drive), Scripted([]), attempt).answer == "9"
    assert tasks == [
        "system: You are terse.\n\nuser: 2 + 3?\n\nassistant: 5\n\nuser: And 4 more?",
        "And 4 more?",
    ]


def test_the_conversation_decides_the_id_and_none_leaves_it_as_it_was() -> None:
    other = replace(TURN, history=(*HISTORY[:2], Message(role="assistant", content="six")))
    assert len({ALONE.id, TURN.id, other.id}) == 3
    assert ALONE.id == "ep-72c7545f25a6d9e9"  # of before there were conversations
