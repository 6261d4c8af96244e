"""Recorded runs by hand: listed, replayed offline, forked, graded again; and the mistakes."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentloop.cli import run
from agentloop.models.scripted import Scripted
from agentloop.records import Request
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.workflows.load import load
from agentloop.workflows.rerun import Replays
from agentloop.workspace import Workspace

Cli = Callable[..., Any]


@pytest.fixture
def recorded(tiny: str, home: Path, data: Cli) -> tuple[str, str]:
    """(workflow, id of a run of four rollouts)."""
    done = data("run", tiny, "-n", "4")
    return tiny, done["run"]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model may be asked, no sandbox used."""

    async def refuse(*_: object) -> None:
        raise AssertionError("something was asked that is not in the record")

    monkeypatch.setattr(Scripted, "complete", refuse)
    monkeypatch.setattr("agentloop.sandboxes.monty.MontySandbox.run", refuse)


def episodes(home: Path, **query: Any) -> list[Any]:
    with Archive(home) as archive:
        return archive.episodes(Query(**query))


def edit(workflow: str, old: str, new: str, *, file: str = "workflow.yaml") -> None:
    path = Path(workflow) / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_run_replays_identically_and_asks_nobody(
    recorded: tuple[str, str], offline: None, data: Cli, home: Path
) -> None:
    workflow, name = recorded
    done = data("runs", "replay", name, "--workflow", workflow)
    assert (done["identical"], done["different"], done["impossible"]) == (4, 0, 0)
    one = episodes(home)[0].id
    assert data("runs", "replay", one[:9], "--workflow", workflow)["identical"] == 1


@pytest.mark.parametrize("graph", ["tree_search", "tree_sampling", "steps", "two_attempts"])
def test_every_shipped_agent_replays(
    tiny: str, home: Path, data: Cli, graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = '''\
def replies(request):
    """As a step: the first word is what the seed says, and the third step answers."""
    said = sum(one.role == "assistant" and one.name is None for one in request.messages)
    return f"step {(request.sampling.seed or 0) % 97}" if said < 2 else "Answer: 42"
'''
    (Path(tiny) / "parts.py").write_text(replies)
    edit(tiny, "limits: {turns: 4", f"graph: {graph}\nlimits: {{turns: 24")
    name = data("run", tiny, "-n", "3")["run"]
    assert min(one.usage.calls for one in episodes(home)) >= 2
    monkeypatch.setattr(Scripted, "complete", None)
    done = data("runs", "replay", name, "--workflow", tiny)
    assert (done["identical"], done["different"]) == (3, 0), done["episodes"]


def _schema(workflow: str) -> None:
    edit(workflow, "tools: [python]", "tools: [./tools.py:python]")
    (Path(workflow) / "tools.py").write_text(
        'def python(code: str) -> str:\n    """Runs code, maybe."""\n    return "1"\n'
    )


def test_a_changed_tool_is_named(recorded: tuple[str, str], data: Cli) -> None:
    workflow, name = recorded
    _schema(workflow)
    done = data("runs", "replay", name, "--workflow", workflow, code=1)
    assert done["different"] == 4
    assert "schema of the tool `python` was changed" in done["episodes"][0]["reason"]


VALUES = """\
from typing import Any

from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.runtime import Runtime

from agentloop.graphs.context import RunContext, lent
from agentloop.graphs.messages import to_message
from agentloop.records import Request


async def ask(state: MessagesState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    context = lent(runtime)
    worth = await context.tools["value"].call({"texts": "a b"})
    await context.model.complete(Request(messages=tuple(map(to_message, state["messages"]))))
    return {"messages": [("assistant", f"Answer: {worth}")]}


graph = StateGraph(MessagesState, context_schema=RunContext).add_node("ask", ask)
graph = graph.add_edge(START, "ask").add_edge("ask", END).compile()
"""


def test_a_tool_that_only_the_record_knows_gives_what_it_gave(
    tiny: str, data: Cli, home: Path
) -> None:
    (Path(tiny) / "mine.py").write_text(VALUES)
    tool = 'def value(texts: str) -> str:\n    """What they are worth."""\n    return "7"\n'
    (Path(tiny) / "tools.py").write_text(tool)
    edit(tiny, "tools: [python]", "graph: ./mine.py:graph\ntools: [./tools.py:value]")
    name = data("run", tiny, "-n", "2")["run"]
    assert {one.answer for one in episodes(home)} == {"7"}
    edit(tiny, "tools: [./tools.py:value]", "tools: [python]")  # as with one that a lane lent
    done = data("runs", "replay", name, "--workflow", tiny)
    assert done["identical"] == 2, done["episodes"]


def test_a_changed_graph_is_named(
    tiny: str, home: Path, data: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (Path(__file__).parents[2] / "graphs" / "react.py").read_text()
    (Path(tiny) / "mine.py").write_text(source)
    edit(tiny, "tools:", "graph: ./mine.py:graph\ntools:")
    name = data("run", tiny, "-n", "4")["run"]
    assert data("runs", "replay", name, "--workflow", tiny)["identical"] == 4
    edit(tiny, 'RESULT = "Output:\\n{result}"', 'RESULT = "Output:\\n{result} "', file="mine.py")
    done = data("runs", "replay", name, "--workflow", tiny, code=1)
    told = [one["reason"] for one in done["episodes"] if one["state"] == "different"]
    assert told and all("call 2 asks something else: message" in one for one in told)
    assert run(["runs", "replay", name, "--workflow", tiny]) == 1
    assert "call 2 asks something else" in capsys.readouterr().out
    edit(tiny, '.add_node("tools", call_tools)', '.add_node("tools", call_tools)'
         '.add_node("more", call_tools).add_edge("more", END)', file="mine.py")  # fmt: skip
    done = data("runs", "replay", name, "--workflow", tiny, code=1)
    assert "the nodes or edges of the graph" in done["episodes"][0]["reason"]


def test_a_graph_from_a_record_is_only_loaded_if_the_workflow_names_it(
    recorded: tuple[str, str], home: Path
) -> None:
    workflow, _ = recorded
    (home / "evil.py").write_text("raise SystemExit('it ran')")
    one = episodes(home)[0]
    changed = replace(one, setup=replace(one.setup, graph=f"{home}/evil.py:graph"))
    space = Workspace.find()
    with Archive(home) as archive:
        replays = Replays(archive, load(workflow, space), space)
        done = asyncio.run(replays.replay(changed))
    assert done.state == "impossible" and "not one that the workflow names" in done.reason


def test_a_fork_at_the_last_step_is_its_parent_again(
    recorded: tuple[str, str], data: Cli, home: Path
) -> None:
    workflow, _ = recorded
    parent = next(one for one in episodes(home) if one.usage.calls == 2)
    for step in (0, 1, 2):
        done = data("runs", "fork", parent.id, "--at", str(step), "--workflow", workflow)
        [row] = done["episodes"]
        assert row["difference"] == "" and row["answer"] == parent.answer
        [made] = episodes(home, run=done["run"])
        assert (made.setup.parent, made.setup.step) == (parent.id, step)
        assert made.trajectories == parent.trajectories and made.score == parent.score
        assert made.id != parent.id and made.run != parent.run
        shown = data("runs", "show", done["run"])
        assert shown["episodes"][0]["parent"] == parent.id and shown["state"] == "done"
        with Archive(home) as archive:
            kept = archive.log.keys("call", f"{made.id}/")
        assert len(kept) == made.usage.calls, "a fork has all of its replies"
        assert data("runs", "replay", made.id, "--workflow", workflow)["identical"] == 1


def test_only_what_follows_the_step_is_asked_and_run(
    recorded: tuple[str, str], data: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow, _ = recorded
    parent = next(one for one in episodes(home) if one.usage.calls == 2)
    asked: list[Request] = []
    complete = Scripted.complete

    listed: list[int] = []

    async def noting(self: Scripted, request: Request) -> Any:
        asked.append(request)
        with Archive(home) as archive:
            listed.append(len(archive.log.keys("run")))
        return await complete(self, request)

    async def refuse(*_: object) -> None:
        raise AssertionError("the tool ran, though its result is in the record")

    monkeypatch.setattr(Scripted, "complete", noting)
    monkeypatch.setattr("agentloop.sandboxes.monty.MontySandbox.run", refuse)
    data("runs", "fork", parent.id, "--at", "1", "--workflow", workflow)
    assert len(asked) == 1 and asked[0].messages[-1].content.startswith("Output:")
    assert listed == [2], "a fork that is killed is a run that was begun"
    with Archive(home) as archive:
        assert archive.spent(episodes(home)[-1].run).calls == 1, "what was told costs nothing"


def test_forks_go_their_own_ways(tiny: str, home: Path, data: Cli) -> None:
    (Path(tiny) / "parts.py").write_text(
        "def replies(request):\n"
        '    if request.messages[-1].content.startswith("Output:"):\n'
        '        return f"Answer: {request.sampling.seed}"\n'
        '    return "```python\\nprint(6 * 7)\\n```"\n'
    )
    data("run", tiny, "-n", "1")
    [parent] = episodes(home)
    done = data("runs", "fork", parent.id, "--at", "1", "--n", "3", "--workflow", tiny)
    answers = [row["answer"] for row in done["episodes"]]
    assert answers[0] == parent.answer and len(set(answers)) == 3
    made = episodes(home, run=done["run"])
    firsts = [next(n for n in one.trajectories[0].nodes if n.sampled) for one in made]
    assert all(node == firsts[0] for node in firsts), "who sampled the first reply stays known"
    again = data("runs", "fork", parent.id, "--at", "1", "--n", "3", "--workflow", tiny)
    assert again == done and len(episodes(home)) == 4


def test_a_fork_that_was_cut_off_is_not_resumed_as_a_run(
    recorded: tuple[str, str], data: Cli, home: Path, refused: Cli
) -> None:
    workflow, name = recorded
    [begun] = data("runs", "list")
    with Archive(home) as archive:
        [entry] = archive.read(Query(kinds=("run",)))
        body = {**entry.body, "plan": ""}  # type: ignore[dict-item]
        archive.add_event("run", "run-0123456789abcdef", entry.scope, body)
    assert begun["id"] == name
    assert "there is no unfinished run" in refused("run", workflow, "-n", "4", "--resume")


def test_a_fork_under_the_champion(recorded: tuple[str, str], data: Cli, home: Path) -> None:
    workflow, _ = recorded
    parent = next(one for one in episodes(home) if one.usage.calls == 2)
    (home / "text.md").write_text("Solve it well.")
    assert run(["instructions", "edit", workflow, str(home / "text.md")]) == 0
    done = data("runs", "fork", parent.id, "--at", "1", "--bundle", "champion",
                "--workflow", workflow)  # fmt: skip
    [made] = episodes(home, run=done["run"])
    assert made.bundle != parent.bundle and "Solve it well." in made.setup.system
    assert "system text" in done["episodes"][0]["difference"]
    assert [n.message for n in made.trajectories[0].nodes if n.sampled] == [
        n.message for n in parent.trajectories[0].nodes if n.sampled
    ]


def test_a_changed_agent_cannot_be_forked(tiny: str, home: Path, data: Cli, refused: Cli) -> None:
    source = (Path(__file__).parents[2] / "graphs" / "react.py").read_text()
    (Path(tiny) / "mine.py").write_text(source)
    edit(tiny, "tools:", "graph: ./mine.py:graph\ntools:")
    data("run", tiny, "-n", "4")
    parent = next(one for one in episodes(home) if one.usage.calls == 2)
    edit(tiny, 'RESULT = "Output:\\n{result}"', 'RESULT = "Output:\\n{result} "', file="mine.py")
    said = refused("runs", "fork", parent.id, "--at", "2", "--workflow", tiny)
    assert "cannot be forked at 2: call 2 asks something else" in said
    assert len(episodes(home)) == 4 and len(data("runs", "list")) == 1


def test_graded_again_without_a_model(
    recorded: tuple[str, str], data: Cli, home: Path, offline: None
) -> None:
    workflow, name = recorded
    before = [one.success for one in episodes(home)]
    assert any(before)
    (Path(workflow) / "strict.py").write_text(
        "from agentloop.ports import part\nfrom agentloop.records import Score\n\n\n@part\n"
        "class Strict:\n    async def score(self, episodes):\n"
        "        return [Score(value=0.0, success=False, source='strict') for _ in episodes]\n"
    )
    plan = data("runs", "rescore", workflow, "--reward", "./strict.py:Strict", "--dry-run")
    assert plan == {"read": 4, "gradable": 4, "done": False}
    done = data("runs", "rescore", workflow, "--reward", "./strict.py:Strict")
    assert (done["read"], done["scored"], done["changed"]) == (4, 4, sum(before))
    assert done["spec"].startswith("./strict.py:Strict@rescore-")
    assert [one.success for one in episodes(home)] == [False] * 4
    done = data("runs", "rescore", workflow)  # and back, by the workflow's own
    assert done["changed"] == sum(before)
    assert [one.success for one in episodes(home)] == before
    listed = data("runs", "list")
    assert [one["id"] for one in listed] == [name] and listed[0]["solved"] == sum(before)


def test_a_cycle_is_listed_and_replays(cycled: tuple[str, str], data: Cli) -> None:
    workflow, home = cycled
    [row] = data("runs", "list", "--home", home)
    assert row["what"] == "cycle" and row["state"] == "done" and row["rollouts"] > 20
    done = data("runs", "replay", row["id"], "--workflow", workflow, "--home", home)
    assert done["identical"] == row["rollouts"], [
        one for one in done["episodes"] if one["state"] != "identical"
    ][:3]


def test_mistakes_are_one_sentence(
    recorded: tuple[str, str], refused: Cli, home: Path, tmp_path: Path
) -> None:
    workflow, _ = recorded
    parent = episodes(home)[0]
    assert "unknown run, cycle or rollout `nope`" in refused("runs", "replay", "nope")
    assert "give --at a number from 0 to" in refused("runs", "fork", parent.id, "--at", "99")
    assert "there is no rollout `nope`" in refused("runs", "fork", "nope", "--at", "0")
    assert "unknown workflow `tiny`" in refused("runs", "replay", parent.id)
    assert "x.py" in refused("runs", "rescore", workflow, "--reward", "./x.py:Y")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "nothing was logged" in refused("runs", "list", "--home", str(empty))
