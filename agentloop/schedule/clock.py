"""What time it is, and waiting: the seam by which a test gives a scheduler another clock.

Out: Unix seconds, which a person may set forward and back, and which only say *which* slots are
due; and a pause, which is measured with the monotonic clock.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """A clock."""

    def now(self) -> float:
        """Unix seconds; may jump."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait so long, whatever happens to `now` meanwhile."""
        ...


class SystemClock:
    """The machine's."""

    def now(self) -> float:
        """Unix seconds."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait, by the event loop's monotonic clock."""
        await asyncio.sleep(seconds)
