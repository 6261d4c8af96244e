"""What a rollout's calls are called: the keys under which the journal has their replies.

In: what a call asks, and how many came before it. Out: its key, `EPISODE/NUMBER-DIGEST`, and the
seed that goes with its number; a second digest follows where it asks for tools or samples in its
own way. Decision: a rollout that goes on is told which calls the journal has, and each of them that
is asked for again has its old number, in whatever order the agent asks this time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import count

from agentloop.records import Attempt, Message, Sampling, ToolSpec


class CallKeys:
    """Of one rollout."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._kept: dict[str, list[int]] = {}  # by what was asked, numbers of calls in the journal
        self._taken: set[int] = set()  # numbers of such calls, and of new ones beside them
        self._tools: tuple[tuple[ToolSpec, ...], str] = ((), "")  # last told of; their digest

    def expect(self, calls: Iterable[str]) -> None:
        """The journal has these `calls` (the ends of their keys)."""
        for call in calls:
            number, _, asked = call.partition("-")
            self._kept.setdefault(asked, []).append(int(number))
            self._taken.add(int(number))
        for numbers in self._kept.values():
            numbers.sort(reverse=True)

    def finished(self, key: str) -> int:
        """The number of a call whose step is done, so that it is not asked for again."""
        number, _, asked = key.rpartition("/")[2].partition("-")
        if int(number) in self._kept.get(asked, ()):
            self._kept[asked].remove(int(number))
        return int(number)

    def next(
        self, messages: tuple[Message, ...], tools: tuple[ToolSpec, ...], sampling: Sampling,
        calls: int,
    ) -> tuple[str, int | None]:  # fmt: skip
        """(key, seed) of the call that comes after `calls` others."""
        asked = f"{prompt_digest(messages)}{self._beside(tools, sampling)}"
        number = self._number(asked, calls)
        seed = call_seed(sampling.seed, self._attempt.sample, number)
        return f"{self._attempt.id}/{number}-{asked}", seed

    def _number(self, asked: str, calls: int) -> int:
        if not self._taken:
            return calls
        if kept := self._kept.get(asked):
            return kept.pop()
        number = next(one for one in count(calls) if one not in self._taken)
        self._taken.add(number)
        return number

    def _beside(self, tools: tuple[ToolSpec, ...], sampling: Sampling) -> str:
        """What is asked beside the messages; nothing where that is what every call asks."""
        usual = self._attempt.sampling
        own = "" if sampling is usual or sampling == usual else repr(sampling)
        if tools != self._tools[0]:  # nearly always the last ones, and then the same objects
            self._tools = tools, f"-{_digest(repr(tools))}" if tools else ""
        told = self._tools[1]
        return f"-{_digest(f'{own}{told}')}" if own else told


def prompt_digest(messages: tuple[Message, ...]) -> str:
    """The messages of a call, in its key: a resumed agent that asks something else (the time is in
    its prompt) gets a reply to that, not the journaled one."""
    told = "\0".join(
        f"{one.role}\0{one.content}\0{one.tool_calls or one.tool_call_id or ''}" for one in messages
    )
    return _digest(told)


def call_seed(seed: int | None, sample: int, number: int) -> int | None:
    """A 31-bit seed for one call: calls and samples differ, repetitions do not."""
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed}/{sample}/{number}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") & 0x7FFFFFFF


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
