"""Find a graph by name or reference and compile it.

Goes in: a name from a workspace's `langgraph.json`, `pkg.mod:graph`, or `./agent.py:graph`. Comes
out: a compiled LangGraph graph without a checkpointer of its own (the runner decides). The target
may be a compiled graph, a `StateGraph`, or a function without arguments that returns either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from langgraph.graph import StateGraph
from langgraph.pregel import Pregel

from agentloop.errors import UnknownName, UsageError
from agentloop.refs import resolve

Graph = Pregel[Any, Any, Any, Any]
_LOADED: WeakKeyDictionary[Graph, str] = WeakKeyDictionary()


def load_graph(reference: str, workspace_roots: Sequence[Path], base: Path) -> Graph:
    """The compiled graph that `reference` names; a path in it is relative to `base`.

    Raises `UnknownName` for a name that no `langgraph.json` has, `UsageError` for a target that
    is not a graph, and what `refs.resolve` raises.
    """
    if ":" not in reference:
        named = {
            name: (target, root)
            for root in reversed(workspace_roots)  # the user's workspace hides a carried one
            for name, target in _named(root).items()
        }
        if reference not in named:
            raise UnknownName("graph", reference, named)
        target, base = named[reference]
    else:
        target = reference
    return known_as(reference, _compiled(resolve(target, base), reference))


def known_as(reference: str, graph: Graph) -> Graph:
    """`graph`, of which it is now known by what it was loaded."""
    _LOADED[graph] = reference
    return graph


def reference_of(graph: Graph) -> str:
    """What `graph` was loaded by; empty for one that was made in another way (an agent that runs
    elsewhere)."""
    return _LOADED.get(graph, "")


def _named(root: Path) -> dict[str, str]:
    file = root / "langgraph.json"
    if not file.is_file():
        return {}
    try:
        graphs = json.loads(file.read_text(encoding="utf-8")).get("graphs", {})
        return {
            name: target["path"] if isinstance(target, dict) else str(target)
            for name, target in graphs.items()
        }
    except (ValueError, AttributeError, KeyError, OSError) as error:
        raise UsageError(
            f"`{file}` cannot be read ({error!r}); it must be like "
            '{"dependencies": ["."], "graphs": {"name": "./file.py:graph"}}'
        ) from error


def _compiled(target: object, reference: str) -> Graph:
    if callable(target) and not isinstance(target, Pregel | StateGraph):
        try:
            target = target()
        except Exception as error:
            raise UsageError(
                f"`{reference}` is a function that failed when called without arguments: {error!r}"
            ) from error
    if isinstance(target, StateGraph):
        try:
            target = target.compile()
        except ValueError as error:
            raise UsageError(f"`{reference}` does not compile: {error}") from error
    if not isinstance(target, Pregel):
        raise UsageError(
            f"`{reference}` is a {type(target).__name__}; expected a LangGraph graph (compiled or "
            "not) or a function without arguments that returns one"
        )
    return target
