"""A rollout's record in the place of its model: it answers as it did.

Goes in: an `Episode`, and the replies that the journal has for it. Comes out: a `ports.Model` that
is told the same again, offline (its tools: `recorded_tools`). Decision: a call is known by its
number (calls are numbered as they begin) and gets its reply, or fails, when the calls that ended
before it have theirs, so that calls which ran side by side end in the recorded order. From call
`until` on a live model and live tools answer: then the rollout is a fork.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from agentloop.errors import AgentLoopError, ModelError
from agentloop.graphs.call_keys import call_seed, prompt_digest
from agentloop.ports import Model
from agentloop.records import Completion, Episode, Message, Node, Request, Unanswered, Usage
from agentloop.trajectories.examples import EXAMPLE

_STALL = 20.0
"""Seconds in which no call ends before a call stops waiting for those that ended before it."""


class Diverged(AgentLoopError):
    """The agent did something that is not in the record; the text says what, in one sentence."""


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
    """A reply as the journal has it: `key` is `NUMBER-DIGEST`, the end of its request's; a second
    digest follows where tools or a sampling of its own were asked for."""

    key: str
    completion: Completion

    @property
    def number(self) -> int:
        """Of the call."""
        return _number(self.key)


def calls_of(episode: Episode, journal: Sequence[Kept]) -> list[Call]:
    """The calls of an episode in the order in which they ended; `journal` has the replies that were
    kept under its name. Of several that read the same, the one that was asked with this node's
    prompt and seed is the node's."""
    [trajectory] = episode.trajectories
    graph, left, calls = trajectory.nodes, list(journal), list[Call]()
    failed = {_number(one.call) for one in unanswered_of(episode)}
    numbers = iter(range(len(graph) + len(failed)))
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
            taken = {call.number for call in calls} | {one.number for one in left} | failed
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
        asked = one.key.split("-")[1] == digest
        return asked, call_seed(seed, episode.sample, one.number) == given

    alike = [one for one in journal if _same(one.completion, node)]
    return max(alike, key=likely, default=None)


def unanswered_of(episode: Episode) -> tuple[Unanswered, ...]:
    """The calls of an episode that brought no reply."""
    return episode.setup.unanswered if episode.setup else ()


def steps_of(episode: Episode, journal: Sequence[Kept]) -> int:
    """How many model calls an episode made, those that failed too: their numbers are below it."""
    replied = [call.number for call in calls_of(episode, journal)]
    failed = [_number(one.call) for one in unanswered_of(episode)]
    return max((*replied, *failed), default=-1) + 1


class RecordedModel:
    """Answers as in `episode`, whose calls are `calls`; from number `until` on it asks `live`."""

    def __init__(
        self, episode: Episode, calls: Sequence[Call], *, until: int | None = None,
        live: Model | None = None, system: bool = True,
    ) -> None:  # fmt: skip
        """Without `system` the system text and lent examples may be others than the recorded."""
        kept = [until is None or call.number < until for call in calls]
        known = [call for call, here in zip(calls, kept, strict=True) if here]
        self._calls = {call.number: (rank, call) for rank, call in enumerate(known)}
        self._failed = {
            _number(one.call): replace(one, after=sum(kept[: one.after]))
            for one in unanswered_of(episode)
        }
        redacted = any(one.redacted for one in episode.trajectories)
        self._exact = system and not redacted  # what was asked then can be compared by its digest
        self._until, self._live, self._system = until, live, system
        self._ended = 0
        self._moved = asyncio.Event()
        self.live = until == 0
        """Whether the part that was recorded is over."""
        self.difference = ""
        """The first thing that the agent did otherwise."""
        self.missing = ""
        """The first thing that it did and that was not kept, so that nobody can tell."""

    async def complete(self, request: Request) -> Completion:
        """The recorded reply, or a live one. Raises `Diverged`, or the recorded `ModelError`."""
        key = request.key.rpartition("/")[2]
        number = _number(key)
        if self._until is not None and number >= self._until and self._live is not None:
            self.live = True
            return await self._live.complete(request)
        if number in self._failed:
            raise await self._failure(self._failed[number], key)
        if number not in self._calls:
            raise self._unknown(number)
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

    @property
    def goes_on(self) -> bool:
        """Whether live tools are due: of a fork, once the part that was recorded is over."""
        return self.live or (self._until is not None and self.told)

    def differs(self, sentence: str) -> Diverged:
        """Note the first difference; an error that says it."""
        self.difference = self.difference or ("" if self.missing else sentence)
        return Diverged(sentence)

    def lacks(self, sentence: str) -> Diverged:
        """Note the first thing that was not kept; an error that says it."""
        self.missing = self.missing or ("" if self.difference else sentence)
        return Diverged(sentence)

    async def _failure(self, known: Unanswered, key: str) -> Exception:
        number = _number(key)
        if self._exact and key != known.call:
            return self.differs(f"call {number + 1}, which failed, asks something else")
        await self._turn(known.after, number)
        return ModelError(known.failure.detail, reason=known.failure.reason)

    def _unknown(self, number: int) -> Exception:
        if number < max(self._calls, default=-1):
            return self.lacks(f"call {number + 1} was cut off by the agent, which then went on")
        return self.differs(f"the agent makes call {number + 1}, which is not in the record")

    async def _turn(self, rank: int, number: int) -> None:
        while self._ended < rank:
            try:
                await asyncio.wait_for(self._moved.wait(), _STALL)
            except TimeoutError:
                raise self.differs(
                    f"call {number + 1} does not run beside the calls that it ran beside"
                ) from None


def _number(key: str) -> int:
    """Of a call, from the end of its request's key."""
    return int(key.partition("-")[0])


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
