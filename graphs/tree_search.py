"""Agents that answer in steps, one reply each: one path, or a tree of them that is searched.

Goes in: `{"messages": [{"role": "user", "content": task}]}`. Comes out: the conversation along the
chosen path, `answer`, and the tree. Three graphs: `steps` takes one step after the other, `graph`
searches for one answer, `sampling` goes on after a solution to collect many paths. The budget is
the rollout's `turns`, but for as many as one expansion takes. A tool named `value` scores paths
(`{"texts": [...]}` to a JSON list of numbers); without it all are worth the same, and the search
explores evenly. The tree in the state is plain JSON, so a search that was cut off goes on from its
last checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime

from agentloop.graphs.context import RunContext, lent
from agentloop.graphs.messages import to_dict, to_message
from agentloop.graphs.text import final_answer
from agentloop.records import Json, Message, Request, Sampling
from agentloop.trajectories import search_tree
from agentloop.trajectories.search_tree import GENERATE, SearchSettings, Tree, states_answer

# How a path is continued: each step ends with its line, and this asks for the next one. It has the
# form in which worked examples are lent, so that they show the very same conversation.
NEXT = "Output:\n(next step)"
STOP = ("\n",)
VALUE = "value"
UNKNOWN = 0.5


class State(TypedDict, total=False):
    """Messages in the OpenAI chat format, the search, and the answer once there is one."""

    messages: Annotated[list[dict[str, Any]], operator.add]
    tree: Tree
    answer: str


def text_of(state: State, path: Sequence[str]) -> str:
    """A path as the value model reads it: the task, then a step a line."""
    return "\n".join((str(state["messages"][0]["content"]), *path))


def conversation(state: State, path: Sequence[str]) -> list[Message]:
    """The messages after which the model says the next step of `path`."""
    turns = [to_message(one) for one in state["messages"]]
    for step in path:
        turns += [Message(role="assistant", content=step), Message(role="user", content=NEXT)]
    return turns


async def next_step(state: State, path: Sequence[str], context: RunContext) -> str:
    """One proposal for the step after `path`."""
    request = Request(messages=tuple(conversation(state, path)), sampling=Sampling(stop=STOP))
    return (await context.model.complete(request)).message.content


async def take_step(state: State, runtime: Runtime[RunContext]) -> State:
    """Without a search: the next step of the one path, or the answer."""
    request = Request(
        messages=tuple(to_message(one) for one in state["messages"]), sampling=Sampling(stop=STOP)
    )
    said = (await lent(runtime).model.complete(request)).message
    if states_answer(said.content):
        return {"messages": [to_dict(said)], "answer": final_answer(said.content)}
    return {"messages": [to_dict(said), to_dict(Message(role="user", content=NEXT))]}


async def values(state: State, paths: Sequence[list[str]], context: RunContext) -> list[float]:
    """What each path is worth, by the tool that was lent for it."""
    tool = context.tools.get(VALUE)
    if tool is None or not paths:
        return [UNKNOWN] * len(paths)
    texts: list[Json] = [text_of(state, path) for path in paths]
    return [float(value) for value in json.loads(await tool.call({"texts": texts}))]


def _search(defaults: SearchSettings, name: str) -> CompiledStateGraph[Any, Any, Any, Any]:
    """A graph of the search's phases; each node is one of them and changes a copy of the tree."""

    def settings(context: RunContext) -> SearchSettings:
        # A step that was cut off is taken again: the calls that it lost count, too.
        return replace(defaults, calls=max(1, context.limits.turns - defaults.branch))

    def select(state: State, runtime: Runtime[RunContext]) -> State:
        tree = search_tree.copied(state["tree"]) if "tree" in state else search_tree.new_tree()
        search_tree.select(tree, settings(lent(runtime)))
        return {"tree": tree}

    async def propose(state: State, runtime: Runtime[RunContext]) -> State:
        context, tree = lent(runtime), search_tree.copied(state["tree"])
        paths = search_tree.wanted(tree, settings(context))
        said = await asyncio.gather(*(next_step(state, path, context) for path in paths))
        search_tree.proposed(tree, settings(context), said)
        return {"tree": tree}

    def reflect(state: State, runtime: Runtime[RunContext]) -> State:
        own, tree = settings(lent(runtime)), search_tree.copied(state["tree"])
        solved = [states_answer(path[-1]) for path in search_tree.wanted(tree, own)]
        search_tree.reflected(tree, own, solved)
        return {"tree": tree}

    async def value(state: State, runtime: Runtime[RunContext]) -> State:
        context, tree = lent(runtime), search_tree.copied(state["tree"])
        paths = search_tree.wanted(tree, settings(context))
        found = await values(state, paths, context)
        search_tree.valued(tree, settings(context), found)
        return {"tree": tree}

    def back_up(state: State) -> State:
        tree = search_tree.copied(state["tree"])
        search_tree.back_up(tree)
        return {"tree": tree}

    def answer(state: State) -> State:
        tree = state["tree"]
        path = search_tree.path_of(tree, search_tree.answer_node(tree))
        said = conversation(state, path)[len(state["messages"]) : -1]
        found = final_answer(path[-1]) if path and states_answer(path[-1]) else ""
        return {"messages": [to_dict(one) for one in said], "answer": found}

    phases = ("select", "propose", "reflect", "value", "back_up")
    places: dict[Any, str] = {**dict(zip(phases, phases, strict=True)), "done": "answer"}
    built = StateGraph(State, context_schema=RunContext).add_node("answer", answer)
    for node in (select, propose, reflect, value, back_up):
        built.add_node(node.__name__, node)
        built.add_conditional_edges(node.__name__, _phase, places)
    return built.add_edge(START, "select").add_edge("answer", END).compile(name=name)


def _phase(state: State) -> str:
    return state["tree"]["phase"]


def _ended(state: State) -> str:
    return END if "answer" in state else "step"


graph = _search(SearchSettings(), "tree_search")
sampling = _search(GENERATE, "tree_sampling")
steps = (
    StateGraph(State, context_schema=RunContext)
    .add_node("step", take_step)
    .add_edge(START, "step")
    .add_conditional_edges("step", _ended, ["step", END])
    .compile(name="steps")
)
