"""Notice that the event loop stands still: then no deadline of any rollout can be kept.

In: the running loop. Out: a warning, while it lasts, that names the line which blocks, and the
same text for the failures of the rollouts that it made late. An async node that computes or waits
without `await` is the usual cause; Python cannot interrupt it from outside, but can say where.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

INTERVAL = 1.0
"""Seconds between two signs of life."""
_log = logging.getLogger("agentloop")


class Heartbeat:
    """Watches one loop from a thread; `last` says what blocked it last, empty for nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop, patience: float) -> None:
        self.last = ""
        self._loop, self._patience = loop, patience
        self._thread_id = threading.get_ident()
        self._stop = threading.Event()
        self._until = -math.inf

    def since(self, begun: float) -> str:
        """What blocked the loop after `begun` (monotonic), empty for nothing."""
        return self.last if self._until >= begun else ""

    @contextmanager
    def watching(self) -> Iterator[Heartbeat]:
        """Watch for as long as the block takes."""
        thread = threading.Thread(target=self._watch, name="agentloop-heartbeat", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            beat = threading.Event()
            asked = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(beat.set)
            except RuntimeError:  # the loop is closed
                return
            if not beat.wait(self._patience):
                place = self._place()
                self.last = f"the event loop was blocked at {place}"
                self._until = math.inf
                _log.warning(
                    "the event loop has stood still for %.0f s at %s, and every rollout with it; "
                    "`await` there, or make the node a plain function", self._patience, place,
                )  # fmt: skip
                while not beat.wait(INTERVAL) and not self._stop.is_set():
                    pass
                self._until = time.monotonic()
                self.last += f" for {self._until - asked:.0f} s"

    def _place(self) -> str:
        frame = sys._current_frames().get(self._thread_id)
        if frame is None:
            return "an unknown place"
        return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"
