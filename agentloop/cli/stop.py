"""Work that a signal ends: SIGTERM and Ctrl-C cancel it, and nothing is left after some seconds.

In: a coroutine. Out: its result, or the signal that ended it. Cancelling lets every stage put its
affairs in order: model servers and trainers are stopped, replies under way are let go, what was
finished is in the log. What has not ended by then is given up with the process, and its children
end with their parent.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

SECONDS = 8.0
"""From the signal to the end at the latest; a service manager waits longer."""


class Stopped(Exception):
    """A signal ended the work."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def until_stopped(work: Coroutine[Any, Any, T], seconds: float = SECONDS) -> T:
    """Run `work`; raises `Stopped` when SIGTERM or SIGINT cancelled it. A second signal, and the
    time that passes after the first, end the process at once (exit code 1)."""
    received: list[int] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if received:
            os._exit(1)
        received.append(number)
        # A thread, since the event loop may be what hangs.
        timer = threading.Timer(seconds, os._exit, (1,))
        timer.daemon = True
        timer.start()
        for loop, task in running:
            loop.call_soon_threadsafe(task.cancel)

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None
        running.append((asyncio.get_running_loop(), task))
        if received:
            task.cancel()
        return await work

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        if received:
            raise Stopped(received[0]) from None
        raise
    finally:
        if not received:  # else the end is near, and its deadline stays
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
