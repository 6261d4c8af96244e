"""Time that counts: a deadline over all attempts of a call and the clock of a rollout, which both
stand still while a call waits its turn.

In: seconds. Out: four contexts: `deadline` around a call, `Clock.running` around the calls of a
rollout, `leaving_time` around a model that others may have to stand in for, and `off_the_clock`
around a queue of our own making (a rate limit, a budget in use), which is nobody's slowness.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_CURRENT: ContextVar[asyncio.Timeout | None] = ContextVar("agentloop_deadline", default=None)
_CLOCK: ContextVar[Clock | None] = ContextVar("agentloop_clock", default=None)
_OTHERS: ContextVar[int] = ContextVar("agentloop_others", default=0)


class deadline:
    """`async with deadline(30)`: `TimeoutError` after so many `seconds` on the clock, or fewer
    within `leaving_time`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = min(seconds, _share())
        self._timeout = asyncio.timeout(self.seconds)

    async def __aenter__(self) -> deadline:
        await self._timeout.__aenter__()
        self._outer = _CURRENT.set(self._timeout)
        return self

    async def __aexit__(self, *exit: object) -> None:
        _CURRENT.reset(self._outer)
        await self._timeout.__aexit__(*exit)  # type: ignore[arg-type]


@contextmanager
def leaving_time(others: int) -> Iterator[None]:
    """Within, a deadline takes at most its equal share of what the rollout's clock has left, so
    that `others` can still be asked. Without such a clock nothing changes."""
    outer = _OTHERS.set(others)
    try:
        yield
    finally:
        _OTHERS.reset(outer)


def _share() -> float:
    """Seconds for the one of several models that is asked now."""
    clock, others = _CLOCK.get(), _OTHERS.get()
    return math.inf if clock is None or not others else clock.left() / (others + 1)


def time_left() -> float:
    """Seconds that this task's deadline has on the clock; without one, or off it, no end."""
    timeout = _CURRENT.get()
    when = timeout.when() if timeout is not None else None
    return math.inf if when is None else when - asyncio.get_running_loop().time()


class Clock:
    """The seconds of one rollout, of which it may have `limit`: it stands still while any of the
    rollout's calls is off the clock."""

    def __init__(self, limit: float = math.inf) -> None:
        self._limit = limit
        self._began = time.monotonic()
        self._stopped, self._waiting = 0.0, 0

    def seconds(self) -> float:
        """On the clock so far."""
        return (self._stopped if self._waiting else time.monotonic()) - self._began

    def add(self, seconds: float) -> None:
        """So much was used before, in another process."""
        self._began -= seconds

    def left(self) -> float:
        """On the clock from now on; negative when it is late."""
        return self._limit - self.seconds()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within, what this task waits for off the clock stops this one."""
        outer = _CLOCK.set(self)
        try:
            yield
        finally:
            _CLOCK.reset(outer)

    def stop(self) -> None:
        """One more call is off the clock."""
        if not self._waiting:
            self._stopped = time.monotonic()
        self._waiting += 1

    def go(self) -> None:
        """One fewer."""
        self._waiting -= 1
        if not self._waiting:
            self._began += time.monotonic() - self._stopped


class off_the_clock:
    """`with off_the_clock()`: this task's deadline and its rollout's clock, if any, stand still."""

    def __enter__(self) -> None:
        self._timeout, self._left, self._clock = _CURRENT.get(), time_left(), _CLOCK.get()
        if self._timeout is not None and self._left < math.inf:
            self._timeout.reschedule(None)
        if self._clock is not None:
            self._clock.stop()

    def __exit__(self, *exit: object) -> None:
        if self._timeout is not None and self._left < math.inf:
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._left)
        if self._clock is not None:
            self._clock.go()
