"""A rollout's record in the place of its tools, lent or the agent's own: they give what they gave.

Goes in: an `Episode` and its `RecordedModel`. Comes out: tools and a graph that run nothing. Once
the model goes on live (a fork), the tools are run again. Decision: while a record is played
(`told_only`), a LangChain tool that nobody answers for is stopped before it runs, wherever it is
called: in a graph that a node invokes by itself, or by the node's own code.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import ToolMessage
from langchain_core.tracers.context import register_configure_hook
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel

from agentloop.errors import SandboxError, ToolError
from agentloop.graphs.load import Graph, known_as, reference_of
from agentloop.graphs.recorded import RecordedModel
from agentloop.ports import Tool
from agentloop.records import Episode, Json, ToolResult, ToolSpec, content_id


@dataclass(frozen=True)
class RecordedTool:
    """Gives what the tool gave, call by call; once `model` goes on live, asks `tool`."""

    spec: ToolSpec
    given: deque[ToolResult]
    model: RecordedModel
    tool: Tool | None = None

    async def call(self, arguments: dict[str, Json]) -> str:
        """The recorded text. Raises the recorded error, or `Diverged`."""
        over = self.model.live or (not self.given and self.model.goes_on)
        if over and self.tool is not None:
            return await self.tool.call(arguments)
        if not self.given:
            raise self.model.differs(
                f"the agent calls the tool `{self.spec.name}` more often than in the record"
            )
        result = self.given.popleft()
        if result.arguments not in ("", content_id("arguments", arguments)):
            raise self.model.differs(
                f"the agent calls the tool `{self.spec.name}` with other arguments"
            )
        if result.error == "tool":
            raise ToolError(result.text)
        if result.error == "sandbox":
            raise SandboxError(result.text)
        return result.text


def recorded_tools(
    episode: Episode, model: RecordedModel, tools: Mapping[str, Tool], *, live: bool = False
) -> list[Tool]:
    """Stand-ins for the tools that `episode` was lent; with `live` they ask `tools` once the record
    is over. One that is not in `tools` (a lane's own) is known by its name alone."""
    assert episode.setup is not None
    redacted = any(one.redacted for one in episode.trajectories)
    given: dict[str, deque[ToolResult]] = defaultdict(deque)
    for result in episode.setup.results:
        # With a secret taken out, what is called now is not what was called then.
        given[result.name].append(replace(result, arguments="") if redacted else result)
    return [
        RecordedTool(
            spec=tools[name].spec if name in tools else _nameless(name), given=given[name],
            model=model, tool=tools.get(name) if live else None,
        )
        for name in dict.fromkeys((*episode.setup.tools, *(tools if live else ())))
    ]  # fmt: skip


def recorded_graph(episode: Episode, model: RecordedModel, graph: Graph) -> Graph:
    """`graph`, of which tools of its own (in a `ToolNode`) answer from the record, by the id of the
    call; once `model` goes on live, they are run."""
    said: dict[str, deque[str]] = defaultdict(deque)
    for trajectory in episode.trajectories:
        for node in trajectory.nodes:
            if node.message.role == "tool" and node.message.tool_call_id is not None:
                said[node.message.tool_call_id].append(node.message.content)
    return known_as(reference_of(graph), _answered(graph, _Said(said, model, _refusal(episode))))


@contextmanager
def told_only(model: RecordedModel) -> Iterator[None]:
    """While the block runs, no LangChain tool does, until `model` goes on live."""
    token = _STOPS.set(_Stops(model))
    try:
        yield
    finally:
        _STOPS.reset(token)


class _Stops(BaseCallbackHandler):
    """Told of each tool before it runs; what it raises stops the tool."""

    raise_error = True
    run_inline = True

    def __init__(self, model: RecordedModel) -> None:
        self._model = model

    def on_tool_start(self, serialized: dict[str, Any], input_str: str, **_: Any) -> None:
        if not self._model.goes_on:
            raise self._model.lacks(
                f"the agent runs its tool `{serialized.get('name')}` by itself, and what that "
                "gave was not kept"
            )

    def on_chat_model_start(self, *_: Any, **__: Any) -> None:
        """Nothing: the base class has no answer."""


_STOPS: ContextVar[_Stops | None] = ContextVar("agentloop_told_only", default=None)
register_configure_hook(_STOPS, inheritable=True)  # whatever callbacks a graph is called with


@dataclass(frozen=True)
class _Said:
    """What the agent's own tools said, by the id of the call."""

    said: Mapping[str, deque[str]]
    model: RecordedModel
    refusal: Exception | None
    """What a tool raised that ended the rollout."""

    def known(self, request: Any) -> ToolMessage | None:
        """The recorded result; `None` once the tool is to be run."""
        call = request.tool_call
        if self.said.get(call["id"]) and not self.model.live:
            text = self.said[call["id"]].popleft()
            return ToolMessage(content=text, name=call["name"], tool_call_id=call["id"])
        if self.model.goes_on:
            return None
        if self.refusal is not None and self.model.told:
            raise self.refusal
        raise self.model.lacks(
            f"the agent calls its tool `{call['name']}`, whose result was not kept"
        )


def _answered(graph: Graph, said: _Said) -> Graph:
    nodes = dict(graph.nodes)
    for name, node in graph.nodes.items():
        if isinstance(node.bound, ToolNode):
            nodes[name] = node.copy({"bound": _answering(node.bound, said)})
        elif isinstance(node.bound, Pregel):
            within = _answered(node.bound, said)
            nodes[name] = node.copy({"bound": within, "subgraphs": [within]})
    return graph.copy({"nodes": nodes})


def _answering(node: ToolNode, said: _Said) -> ToolNode:
    """The same node, of whatever class; its own wrappers have their say where its tools run."""
    wrap, awrap = node._wrap_tool_call, node._awrap_tool_call

    def run(request: Any, execute: Callable[[Any], Any]) -> Any:
        if (known := said.known(request)) is not None:
            return known
        return wrap(request, execute) if wrap else execute(request)

    async def arun(request: Any, execute: Callable[[Any], Awaitable[Any]]) -> Any:
        if (known := said.known(request)) is not None:
            return known
        return await (awrap(request, execute) if awrap else execute(request))

    made = copy(node)
    made.func, made.afunc = made._func, made._afunc  # which were bound to the other one
    made._wrap_tool_call = run
    made._awrap_tool_call = arun if awrap or not wrap else None  # LangGraph's own order
    return made


def _refusal(episode: Episode) -> Exception | None:
    failure = episode.failure
    if failure is None or failure.reason not in ("tool_error", "sandbox_error"):
        return None
    return (ToolError if failure.reason == "tool_error" else SandboxError)(failure.detail)


def _nameless(name: str) -> ToolSpec:
    return ToolSpec(name=name, description="", parameters={})
