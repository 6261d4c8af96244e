"""A rollout's record in the place of the world: its model and its tools answer as they did.

Goes in: an `Episode`, and the replies that the journal has for it. Comes out: a `ports.Model`,
tools and a graph that are told the same again, offline. Decision: a call is known by its number
(calls are numbered as they begin) and gets its reply when the calls that ended before it have
theirs, so that calls which ran side by side end in the recorded order. From call `until` on a live
model and live tools answer: then the rollout is a fork.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from langchain_core.messages import ToolMessage
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel

from agentloop.errors import AgentLoopError, ModelError, SandboxError, ToolError
from agentloop.graphs.lent import call_seed, prompt_digest
from agentloop.graphs.load import Graph, known_as, reference_of
from agentloop.ports import Model, Tool
from agentloop.records import (
    Completion,
    Episode,
    Json,
    Message,
    Node,
    Request,
    ToolResult,
    ToolSpec,
    Usage,
)
from agentloop.trajectories.examples import EXAMPLE

_STALL = 20.0
"""Seconds in which no call ends before a call stops waiting for those that ended before it."""
_OUTSIDE = {"model_error", "model_timeout", "context_overflow", "tool_error", "sandbox_error"}
"""Failures that the world caused and that are told again, from the record."""


class Diverged(AgentLoopError):
    """The agent asked something that is not in the record; the text says what, in one sentence."""


@dataclass(frozen=True)
class Call:
    """One recorded call."""

    number: int
    prompt: tuple[Message, ...]
    completion: Completion
    exact: bool
    """The journal had it, with what it used; else it was put together from the trajectory."""


@dataclass(frozen=True)
class Kept:
    """A reply as the journal has it: `key` is `NUMBER-DIGEST`, the end of its request's."""

    key: str
    completion: Completion

    @property
    def number(self) -> int:
        """Of the call."""
        return int(self.key.partition("-")[0])


def calls_of(episode: Episode, journal: Sequence[Kept]) -> list[Call]:
    """The calls of an episode in the order in which they ended; `journal` has the replies that were
    kept under its name. Of several that read the same, the one that was asked with this node's
    prompt and seed is the node's."""
    [trajectory] = episode.trajectories
    graph, left, calls = trajectory.nodes, list(journal), list[Call]()
    numbers = iter(range(len(graph)))
    for node in graph:
        if not node.sampled:
            continue
        path = _path(graph, node)
        prompt = tuple(one.message for one in path)
        found = _found(episode, node, prompt, left)
        if found is not None:
            left.remove(found)
            number, completion = found.number, found.completion
        else:
            taken = {call.number for call in calls} | {one.number for one in left}
            number = next(one for one in numbers if one not in taken)
            completion = _rebuilt(path, node)
        told = replace(completion, sampling=node.sampling, policy=node.policy)
        calls.append(Call(number, prompt, told, found is not None))
    return calls


def _found(
    episode: Episode, node: Node, prompt: tuple[Message, ...], journal: Sequence[Kept]
) -> Kept | None:
    digest, given = prompt_digest(prompt), node.sampling.seed if node.sampling else None
    seed = episode.setup.sampling.seed if episode.setup else None

    def likely(one: Kept) -> tuple[bool, bool]:
        asked = one.key.partition("-")[2] == digest
        return asked, call_seed(seed, episode.sample, one.number) == given

    alike = [one for one in journal if _same(one.completion, node)]
    return max(alike, key=likely, default=None)


class RecordedModel:
    """Answers from `calls`; those from number `until` on are asked of `live`."""

    def __init__(
        self, calls: Sequence[Call], *, failed: Exception | None = None, until: int | None = None,
        live: Model | None = None, system: bool = True,
    ) -> None:  # fmt: skip
        """`failed` is told to the first call that is not in the record. Without `system` the system
        text and lent examples may be others than the recorded."""
        known = [call for call in calls if until is None or call.number < until]
        self._calls = {call.number: (rank, call) for rank, call in enumerate(known)}
        self._failed, self._until, self._live, self._system = failed, until, live, system
        self._ended = 0
        self._moved = asyncio.Event()
        self.live = until == 0
        """Whether the part that was recorded is over."""
        self.difference = ""
        """The first thing that the agent did otherwise."""

    async def complete(self, request: Request) -> Completion:
        """The recorded reply, or a live one. Raises `Diverged`, or what the record says."""
        number = int(request.key.rpartition("/")[2].partition("-")[0])
        if self._until is not None and number >= self._until and self._live is not None:
            self.live = True
            return await self._live.complete(request)
        if number not in self._calls:
            raise await self._unknown(number)
        rank, call = self._calls[number]
        if (other := _asked(call.prompt, request.messages, system=self._system)) is not None:
            raise self.differs(f"call {number + 1} asks something else: {other}")
        await self._turn(rank, number)
        self._ended += 1
        self._moved.set()
        self._moved = asyncio.Event()
        if self._until is None:  # a replay: how it is sampled is the agent's to say again
            return replace(call.completion, sampling=None)
        return call.completion

    @property
    def told(self) -> bool:
        """Whether every recorded reply was given."""
        return self._ended == len(self._calls)

    def differs(self, sentence: str) -> Diverged:
        """Note the first difference; an error that says it."""
        self.difference = self.difference or sentence
        return Diverged(sentence)

    async def _unknown(self, number: int) -> Exception:
        """What a call gets that has no reply in the record: the failure that ended the rollout,
        once all that was said before it is said."""
        if self._failed is not None:
            await self._turn(len(self._calls), number)
            return self._failed
        if number < max(self._calls, default=-1):
            return self.differs(f"call {number + 1} failed and the agent went on, with no reply")
        return self.differs(f"the agent makes call {number + 1}, which is not in the record")

    async def _turn(self, rank: int, number: int) -> None:
        while self._ended < rank:
            try:
                await asyncio.wait_for(self._moved.wait(), _STALL)
            except TimeoutError:
                raise self.differs(
                    f"call {number + 1} does not run beside the calls that it ran beside"
                ) from None


@dataclass(frozen=True)
class RecordedTool:
    """Gives what the tool gave, call by call; once `model.live`, asks `tool`."""

    spec: ToolSpec
    given: deque[ToolResult]
    model: RecordedModel
    tool: Tool | None = None

    async def call(self, arguments: dict[str, Json]) -> str:
        """The recorded text. Raises the recorded error, or `Diverged`."""
        over = self.model.live or (not self.given and self.model.told)
        if over and self.tool is not None:
            return await self.tool.call(arguments)
        if not self.given:
            raise self.model.differs(
                f"the agent calls the tool `{self.spec.name}` more often than in the record"
            )
        result = self.given.popleft()
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
    given: dict[str, deque[ToolResult]] = defaultdict(deque)
    for result in episode.setup.results:
        given[result.name].append(result)
    names = [*tools, *sorted(given.keys() - tools.keys())]
    return [
        RecordedTool(
            spec=tools[name].spec if name in tools else _nameless(name), given=given[name],
            model=model, tool=tools.get(name) if live else None,
        )
        for name in names
    ]  # fmt: skip


def recorded_graph(episode: Episode, model: RecordedModel, graph: Graph) -> Graph:
    """`graph`, of which tools of its own (in a `ToolNode`) answer from the record, by the id of the
    call; once `model.live`, they are run."""
    said: dict[str, deque[str]] = defaultdict(deque)
    for trajectory in episode.trajectories:
        for node in trajectory.nodes:
            if node.message.role == "tool" and node.message.tool_call_id is not None:
                said[node.message.tool_call_id].append(node.message.content)
    return known_as(reference_of(graph), _answered(graph, said, model))


def _answered(graph: Graph, said: Mapping[str, deque[str]], model: RecordedModel) -> Graph:
    nodes = dict(graph.nodes)
    for name, node in graph.nodes.items():
        if isinstance(node.bound, ToolNode):
            nodes[name] = node.copy({"bound": _answering(node.bound, said, model)})
        elif isinstance(node.bound, Pregel):
            within = _answered(node.bound, said, model)
            nodes[name] = node.copy({"bound": within, "subgraphs": [within]})
    return graph.copy({"nodes": nodes})


def failure_of(episode: Episode) -> Exception | None:
    """What the world did to end the rollout, as the error that it was."""
    failure = episode.failure
    if failure is None or failure.reason not in _OUTSIDE:
        return None
    if failure.reason == "tool_error":
        return ToolError(failure.detail)
    if failure.reason == "sandbox_error":
        return SandboxError(failure.detail)
    return ModelError(failure.detail, reason=failure.reason)


def _answering(node: ToolNode, said: Mapping[str, deque[str]], model: RecordedModel) -> ToolNode:
    def known(request: Any) -> ToolMessage | None:
        call = request.tool_call
        if said.get(call["id"]) and not model.live:
            text = said[call["id"]].popleft()
            return ToolMessage(content=text, name=call["name"], tool_call_id=call["id"])
        if model.live:
            return None
        raise model.differs(f"the agent calls its tool `{call['name']}`, whose result was not kept")

    def run(request: Any, execute: Callable[[Any], Any]) -> Any:
        return known(request) or execute(request)

    async def arun(request: Any, execute: Callable[[Any], Awaitable[Any]]) -> Any:
        return known(request) or await execute(request)

    return ToolNode(
        list(node.tools_by_name.values()), name=node.name or "tools",
        handle_tool_errors=node._handle_tool_errors, messages_key=node._messages_key,
        wrap_tool_call=run, awrap_tool_call=arun,
    )  # fmt: skip


def _path(graph: Sequence[Node], node: Node) -> list[Node]:
    """What the reply `node` answers, from the root."""
    path: list[Node] = []
    at = node.parent
    while at is not None:
        path.append(graph[at])
        at = graph[at].parent
    return path[::-1]


def _same(completion: Completion, node: Node) -> bool:
    message = completion.message
    if (message.content, message.tool_calls) != (node.message.content, node.message.tool_calls):
        return False
    if node.token_ids and (completion.completion_ids or ()) != node.token_ids:
        return False
    return completion.finish_reason == node.finish_reason


def _rebuilt(path: Sequence[Node], node: Node) -> Completion:
    """A reply from its node; a redacted or an API's node has no ids."""
    ids = tuple(chain.from_iterable(one.token_ids for one in path)) if node.token_ids else None
    return Completion(
        message=node.message, finish_reason=node.finish_reason or "stop",
        usage=Usage(completion_tokens=len(node.token_ids), calls=1), model="",
        policy=node.policy, prompt_ids=ids, completion_ids=node.token_ids or None,
        logprobs=node.logprobs, fallback=node.fallback,
    )  # fmt: skip


def _asked(
    recorded: Sequence[Message], asked: Sequence[Message], *, system: bool
) -> str | None:  # fmt: skip
    """What is not the same in two prompts, but for white space around replies."""
    if not system:
        recorded, asked = _own(recorded), _own(asked)
    for at, (old, new) in enumerate(zip(recorded, asked, strict=False)):
        if _key(old) != _key(new):
            what = "role" if old.role != new.role else "text"
            if old.content == new.content and old.role == new.role:
                what = "tool calls"
            place = "the system text" if old.role == new.role == "system" else f"message {at + 1}"
            return f"{place} has another {what}" if place[0] == "m" else f"{place} is another"
    if len(recorded) != len(asked):
        return f"{len(asked)} messages instead of {len(recorded)}"
    return None


def _own(messages: Sequence[Message]) -> list[Message]:
    return [one for one in messages if one.role != "system" and one.name != EXAMPLE]


def _key(message: Message) -> tuple[object, ...]:
    text = message.content.strip() if message.role == "assistant" else message.content
    return message.role, text, message.tool_calls, message.tool_call_id


def _nameless(name: str) -> ToolSpec:
    return ToolSpec(name=name, description="", parameters={})
