"""A stock LangGraph agent, written against langchain-openai: one workflow file and one changed line
put it on the loop."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint
from rule_world import RuleWorld, write_rows

from agentloop.cli import run
from agentloop.records import Episode, Instruction
from agentloop.refs import load_file
from agentloop.store.archive import Archive
from agentloop.store.query import Query

pytestmark = pytest.mark.integration

STOCK = Path(__file__).parents[1] / "fixtures" / "stock_agent.py"
ENDPOINT = 'base_url="http://127.0.0.1:9/v1"'
CHANGED = "import agentloop; model = agentloop.chat_model()"
WORKFLOW = """\
title: The service desk
model: endpoint
tasks: {use: "agentloop.tasks.files:Jsonl", path: ./rules.jsonl}
graph: ./agent.py:graph
instruction: Apply the rules that a request needs.
reward: {use: "agentloop.rewards.function:Function", grade: ./grader.py:grade}
collect: {use: "agentloop.lanes.collect:Explore", tasks: 8, samples: 1, practice: 8}
lanes:
  instructions:
    {use: "agentloop.lanes.instructions:EvolveInstruction", rollouts: 200, dev: 20, lessons: 6}
heldout: {n: 32, lanes: 16}
"""


def one_changed_line(source: str) -> str:
    lines = source.splitlines(keepends=True)
    [at] = [at for at, line in enumerate(lines) if line.startswith("model = ")]
    lines[at] = CHANGED + "\n"
    return "".join(lines)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from agentloop.cli import start

    folder = tmp_path / "desk"
    folder.mkdir()
    (folder / "workflow.yaml").write_text(WORKFLOW)
    (folder / "agent.py").write_text(one_changed_line(STOCK.read_text()))
    shutil.copy(Path(start.__file__).parent / "starter" / "grader.py", folder)
    write_rows(folder / "rules.jsonl", 120, rules=8, needs=2)
    monkeypatch.chdir(tmp_path)
    return folder


def test_it_is_a_working_agent_without_agentloop(tmp_path: Path) -> None:
    with FakeEndpoint(RuleWorld(tool="open_ticket", arguments={"summary": "help"})) as fake:
        (tmp_path / "stock.py").write_text(
            STOCK.read_text().replace(ENDPOINT, f'base_url="{fake.base_url}"')
        )
        state = asyncio.run(drive(load_file(tmp_path / "stock.py")))
    kinds = [message.type for message in state["messages"]]
    assert kinds == ["human", "ai", "tool", "ai"]
    assert state["messages"][-1].content == "Answer: none"


async def drive(agent: Any) -> Any:
    try:
        return await agent.graph.ainvoke({"messages": [("user", "This needs RULE-01.")]})
    finally:
        await agent.model.root_async_client.close()


def test_one_changed_line_and_it_is_measured_logged_and_improved(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = RuleWorld(tool="open_ticket", arguments={"summary": "help"})
    with FakeEndpoint(world, key="sk-mine") as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
        before = as_json(capsys, "eval", "desk", "--n", "24")
        report = as_json(capsys, "cycle", "desk")
        after = as_json(capsys, "eval", "desk", "--n", "24")
        calls = fake.calls
    with capsys.disabled():
        print(f"\nstock agent: {before['rate']:.0%} -> {after['rate']:.0%}, {calls} calls")
    assert before["rate"] <= 0.30
    assert report["state"] == "promoted" and after["rate"] >= 0.80

    archive = Archive(Path(".agentloop"))
    instruction = archive.get(report["lanes"]["instructions"]["candidate"], Instruction)
    shown = f"{instruction.text.strip()}\n\nYou work at the service desk."
    assert shown in world.systems  # the bundle's text, then the agent's own
    episodes = archive.episodes(Query(bundle=report["bundle"]))
    archive.close()
    assert len(episodes) >= 24
    for episode in episodes:
        check_trajectory(episode, shown)


def check_trajectory(episode: Episode, system: str) -> None:
    [trajectory] = episode.trajectories
    messages = [node.message for node in trajectory.nodes]
    assert [message.role for message in messages] == [
        "system", "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert messages[0].content == system
    [call] = messages[2].tool_calls
    assert (call.name, call.arguments) == ("open_ticket", {"summary": "help"})
    assert messages[3].content == "ticket 4 is open" and messages[3].tool_call_id == call.id
    assert [node.sampled for node in trajectory.nodes] == [False, False, True, False, True]


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)
