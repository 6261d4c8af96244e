"""How fast an endpoint may be called: `Rate`, and `Limited` around a transport.

In: a `Request`, which waits its turn; out: its `Completion`. No 60 seconds hold more calls or more
tokens than allowed (a sliding window, not an average: an average lets a burst through twice), and
what one call is told by `Retry-After` holds back all of them.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import deque
from collections.abc import Callable

from agentloop.deadline import off_the_clock, time_left
from agentloop.errors import ModelError
from agentloop.models.retry import RETRY_AFTER_CAP
from agentloop.ports import Model
from agentloop.records import Completion, Request

WINDOW = 60.0
"""Seconds: providers state their limits per minute."""
_TEMPLATE_TOKENS = 16
"""Tokens a chat format puts around one message, at most."""


def most_tokens(request: Request) -> tuple[int, int]:
    """Upper bounds of (prompt, completion) tokens: no token is shorter than a byte of text."""
    size = 0
    for message in request.messages:
        size += _bytes(message.content) + _TEMPLATE_TOKENS
        for call in message.tool_calls:
            size += _bytes(call.name) + len(json.dumps(call.arguments)) + _TEMPLATE_TOKENS
    for tool in request.tools:
        size += _bytes(tool.name) + _bytes(tool.description) + len(json.dumps(tool.parameters))
        size += _TEMPLATE_TOKENS
    return size, request.sampling.max_tokens


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


class Window:
    """At most `limit` units in any `WINDOW` seconds; made for one event loop."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self._clock = limit, clock
        self._taken: deque[list[float]] = deque()  # [when, units], oldest first
        self._sum = 0.0

    def wait(self, units: float) -> float:
        """Seconds until `units` more are allowed; 0 when they are now. More units than the limit
        count as the limit: such a call goes alone."""
        now, need = self._clock(), min(units, self.limit)
        while self._taken and self._taken[0][0] + WINDOW <= now:
            self._sum -= self._taken.popleft()[1]
        if not self._taken:
            self._sum = 0.0
        free = self.limit - self._sum
        if free >= need:
            return 0.0
        for when, taken in self._taken:
            free += taken
            if free >= need:
                return when + WINDOW - now
        return math.inf  # not reached: an empty window has room for `need`

    def take(self, units: float) -> list[float]:
        """Count `units` now; the entry can be corrected with `settle`."""
        entry = [self._clock(), min(units, self.limit)]
        self._taken.append(entry)
        self._sum += entry[1]
        return entry

    def settle(self, entry: list[float], units: float) -> None:
        """What an entry turned out to use."""
        if entry[0] + WINDOW > self._clock() and self._taken and entry[0] >= self._taken[0][0]:
            self._sum += units - entry[1]
            entry[1] = units


class Rate:
    """The limits of one endpoint: requests and tokens per minute, calls in flight."""

    def __init__(
        self,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        in_flight: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`None` is no limit. A call is counted with its most possible tokens until its reply says
        how many they were."""
        self._clock = clock
        self._requests = None if requests_per_minute is None else Window(requests_per_minute, clock)
        self._tokens = None if tokens_per_minute is None else Window(tokens_per_minute, clock)
        self._slots = None if in_flight is None else asyncio.Semaphore(in_flight)
        self._turn = asyncio.Lock()  # first come, first served
        self._resume = 0.0

    async def call(self, inner: Model, request: Request) -> Completion:
        """`inner.complete(request)` once it may be made. Raises `ModelError` when the endpoint
        asked for a wait that outlasts the call's deadline; no attempt was made then."""
        if self._slots is None:
            return await self._counted(inner, request)
        with off_the_clock():
            await self._slots.acquire()
        try:
            return await self._counted(inner, request)
        finally:
            self._slots.release()

    def hold(self, seconds: float) -> None:
        """No new call for so long, at most `RETRY_AFTER_CAP`: the endpoint asked for it."""
        until = self._clock() + min(seconds, RETRY_AFTER_CAP)
        self._resume = max(self._resume, until)

    async def _counted(self, inner: Model, request: Request) -> Completion:
        if self._resume:
            await self._hold_over()
        if self._requests is None and self._tokens is None:
            return await inner.complete(request)
        most = sum(most_tokens(request)) if self._tokens is not None else 0
        with off_the_clock():
            entry = await self._enter(most)
        completion = await inner.complete(request)
        used = completion.usage.tokens
        if self._tokens is not None and entry is not None and used:  # 0: it was not told
            self._tokens.settle(entry, used)
        return completion

    async def _hold_over(self) -> None:
        """Wait as long as the endpoint asked for, on the clock: this slowness is the endpoint's."""
        while (left := self._resume - self._clock()) > 0:
            if left >= time_left():
                raise ModelError(
                    f"the endpoint asked for no call in the next {left:.0f} s, and the deadline is "
                    "before that", reason="model_timeout", calls=0,
                )  # fmt: skip
            await asyncio.sleep(left)

    async def _enter(self, tokens: int) -> list[float] | None:
        async with self._turn:
            while wait := max(
                self._resume - self._clock(),  # a hold that came while this call was queued
                self._requests.wait(1) if self._requests else 0.0,
                self._tokens.wait(tokens) if self._tokens else 0.0,
            ):
                # Later replies may free tokens earlier than the window does.
                await asyncio.sleep(min(wait, 1.0))
            if self._requests:
                self._requests.take(1)
            return self._tokens.take(tokens) if self._tokens else None


class Limited:
    """A model whose attempts wait their turn; it stands inside `Retrying`."""

    def __init__(self, inner: Model, rate: Rate) -> None:
        self._inner, self.rate = inner, rate

    async def complete(self, request: Request) -> Completion:
        """One reply. Raises the inner model's `ModelError`."""
        try:
            return await self.rate.call(self._inner, request)
        except ModelError as error:
            if error.retry_after is not None:
                self.rate.hold(error.retry_after)
            raise
