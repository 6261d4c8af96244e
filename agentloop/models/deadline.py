"""One deadline over all attempts of a call, which stands still while the call waits its turn.

In: seconds. Out: two contexts: `deadline` around the whole, `off_the_clock` around a queue of our
own making (a rate limit, a budget in use), which is not the endpoint's slowness.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

_CURRENT: ContextVar[asyncio.Timeout | None] = ContextVar("agentloop_deadline", default=None)


class deadline:
    """`async with deadline(30) as clock`: `TimeoutError` after so many seconds on the clock."""

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> deadline:
        await self._timeout.__aenter__()
        self._outer = _CURRENT.set(self._timeout)
        return self

    async def __aexit__(self, *exit: object) -> None:
        _CURRENT.reset(self._outer)
        await self._timeout.__aexit__(*exit)  # type: ignore[arg-type]

    def left(self) -> float:
        """Seconds that remain."""
        when = self._timeout.when()
        return 0.0 if when is None else when - asyncio.get_running_loop().time()


class off_the_clock:
    """`with off_the_clock()`: the deadline of this task, if any, stands still."""

    def __enter__(self) -> None:
        self._timeout = _CURRENT.get()
        when = self._timeout.when() if self._timeout is not None else None
        self._left = None if when is None else when - asyncio.get_running_loop().time()
        if self._timeout is not None and self._left is not None:
            self._timeout.reschedule(None)

    def __exit__(self, *exit: object) -> None:
        if self._timeout is not None and self._left is not None:
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._left)
