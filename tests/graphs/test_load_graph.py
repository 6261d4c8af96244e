"""Finding a graph: by name, by reference, in every form that people write; clear errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rollout_fixtures import ROOT, rollouts

from agentloop.errors import UnknownName, UsageError
from agentloop.graphs.load import load_graph

AGENT = """
from typing import TypedDict
from langgraph.graph import END, START, StateGraph

class State(TypedDict, total=False):
    messages: list
    answer: str

builder = StateGraph(State)
builder.add_node("node", lambda state: {"answer": "mine"})
builder.add_edge(START, "node")
builder.add_edge("node", END)
graph = builder.compile()

def factory():
    return builder

def broken():
    raise RuntimeError("no key")

unfinished = StateGraph(State)
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "agent.py").write_text(AGENT)
    graphs = {"mine": "./agent.py:graph", "react": {"path": "./agent.py:builder"}}
    (tmp_path / "langgraph.json").write_text(json.dumps({"graphs": graphs}))
    return tmp_path


@pytest.mark.parametrize(
    "reference", ["mine", "react", "./agent.py:graph", "./agent.py:builder", "./agent.py:factory"]
)
def test_every_form_runs(folder: Path, reference: str) -> None:
    graph = load_graph(reference, [folder, ROOT], folder)
    assert rollouts([], graph=graph)[0].answer == "mine"


def test_the_users_workspace_hides_the_carried_one(folder: Path) -> None:
    assert load_graph("react", [ROOT], folder).name == "react"
    assert load_graph("react", [folder, ROOT], folder).name != "react"


@pytest.mark.parametrize(
    ("reference", "kind", "says"),
    [
        ("raect", UnknownName, "did you mean `react`"),
        ("./agent.py:grahp", UnknownName, "did you mean `graph`"),
        ("./none.py:graph", UsageError, "does not exist"),
        ("no_such_module:graph", UsageError, "no module"),
        ("./agent.py:number", UsageError, "is a int; expected a LangGraph graph"),
        ("./agent.py:broken", UsageError, "no key"),
        ("./agent.py:unfinished", UsageError, "does not compile"),
    ],
)
def test_errors_say_what_is_wrong(
    folder: Path, reference: str, kind: type[UsageError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        load_graph(reference, [folder, ROOT], folder)


@pytest.mark.parametrize("text", ["", "[]", '{"graphs": []}', '{"graphs": {"x": {}}}'])
def test_a_broken_langgraph_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "langgraph.json").write_text(text)
    with pytest.raises(UsageError, match=r"langgraph\.json"):
        load_graph("x", [tmp_path], tmp_path)


def test_a_checkpointer_of_its_own_does_not_join_two_rollouts() -> None:
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.graph import END, START, MessagesState, StateGraph

    builder = StateGraph(MessagesState)
    builder.add_node("node", lambda state: {"messages": [("ai", str(len(state["messages"])))]})
    builder.add_edge(START, "node").add_edge("node", END)
    graph = builder.compile(checkpointer=InMemorySaver())
    assert [rollouts([], graph=graph)[0].answer for _ in range(2)] == ["1", "1"]
