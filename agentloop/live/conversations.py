"""Which conversation a request belongs to: by the name that the client gave it, or by its words.

OpenAI's clients send the whole conversation with every request and no name. So a conversation is
known by the digest of all that was said up to a reply of ours: a request that continues one of
these goes on with it. Where several conversations read the same, they take turns: nobody can tell
them apart. So those that begin with the same words within an hour are given the same bundle, and
count once when bundles are compared. Decision: one that nobody continued for `idle` seconds is
forgotten; a later request begins a new one.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from agentloop.lanes.bench import Ready
from agentloop.records import Json, Message

MOST = 10_000
"""Conversations that are remembered; more, and the one that was silent longest is forgotten."""
HOUR = 3600
"""Seconds after which the same first words are another beginning: one that is frequent would stay
with one bundle for good otherwise."""

T = TypeVar("T")


@dataclass(eq=False)
class Conversation(Generic[T]):
    """One, under one bundle from its beginning to its end."""

    name: str
    ready: Ready
    between: dict[str, Json] = field(default_factory=dict)
    """The `champion` and the `canary` of which `ready` was chosen; empty without a canary."""
    rollout: T | None = None
    """That of the client's own agent, while it is open."""
    turns: int = 0
    busy: int = 0
    """Requests under way."""
    used: float = field(default_factory=time.monotonic)
    said: list[bytes] = field(default_factory=list)
    """Digests by which it is known."""


class Conversations(Generic[T]):
    """Those that go on."""

    def __init__(self, idle: float) -> None:
        self._idle = idle
        self._known: OrderedDict[str, Conversation[T]] = OrderedDict()
        """By name, the one that was silent longest first."""
        self._said: dict[bytes, OrderedDict[Conversation[T], None]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def find(self, name: str | None, messages: Sequence[Message]) -> Conversation[T] | None:
        """The one that goes on: by its name if it has one."""
        if name is not None:
            return self._known.get(name)
        last = next((at for at, m in enumerate(reversed(messages)) if m.role == "assistant"), None)
        if last is None:
            return None
        alike = self._said.get(digest(messages[: len(messages) - last]))
        if not alike:
            return None
        one = next(iter(alike))
        alike.move_to_end(one)
        return one

    def begin(self, name: str, ready: Ready, between: dict[str, Json]) -> Conversation[T]:
        """A new one."""
        one: Conversation[T] = Conversation(name, ready, between)
        self._known[name] = one
        return one

    def replied(self, one: Conversation[T], messages: Sequence[Message], reply: Message) -> None:
        """Know it by what was said from now on."""
        if self._known.get(one.name) is not one:
            return
        key = digest((*messages, reply))
        if key not in one.said:
            one.said.append(key)
            alike = self._said.setdefault(key, OrderedDict())
            alike[one] = None
            alike.move_to_end(one, last=False)  # before those that were continued from here

    def touch(self, one: Conversation[T]) -> None:
        """It was used just now."""
        one.used = time.monotonic()
        if one.name in self._known:
            self._known.move_to_end(one.name)

    def forget(self, one: Conversation[T]) -> bool:
        """Begin anew when it is continued; whether it was known."""
        if self._known.get(one.name) is not one:
            return False
        del self._known[one.name]
        for key in one.said:
            alike = self._said[key]
            del alike[one]
            if not alike:
                del self._said[key]
        return True

    def silent(self) -> list[Conversation[T]]:
        """Those to be forgotten: nobody continues them, or there are too many."""
        late = time.monotonic() - self._idle
        found: list[Conversation[T]] = []
        for one in self._known.values():
            crowded = len(self._known) - len(found) > MOST
            if one.used > late and not crowded:
                break
            if not one.busy and one.rollout is None:
                found.append(one)
        return found


def new_name(messages: Sequence[Message], now: float) -> str:
    """A name that no other conversation has: its beginning, which others may share, and a number.
    `now` is in Unix seconds."""
    first = next((at for at, m in enumerate(messages) if m.role == "assistant"), len(messages))
    told = digest(messages[:first]) + str(int(now // HOUR)).encode()
    return f"{hashlib.blake2b(told, digest_size=8).hexdigest()}.{secrets.token_hex(4)}"


def unit(name: str) -> str:
    """What the conversation of this name counts as where bundles are compared, and what its bundle
    is chosen by: the name that a client gave it, or its beginning."""
    return name if ":" in name else name.partition(".")[0]


def task_of(name: str, turn: int) -> str:
    """The id of the task that is a conversation's turn."""
    return f"serve/{name}/{turn}"


def conversation_of(task: str) -> str:
    """The name of the conversation that a task is a turn of."""
    return task.removeprefix("serve/").rpartition("/")[0]


def digest(messages: Sequence[Message]) -> bytes:
    """Of what was said; white space around a reply and the order of arguments do not count."""
    told = [
        (
            one.role, one.content.strip() if one.role == "assistant" else one.content,
            [(call.id, call.name, call.arguments) for call in one.tool_calls], one.tool_call_id,
        )
        for one in messages
    ]  # fmt: skip
    text = json.dumps(told, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
