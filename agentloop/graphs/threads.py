"""Threads for synchronous nodes and tools, which a hung one neither starves nor outlives.

In: functions, through `loop.run_in_executor(None, ...)`, which is how LangGraph and
`asyncio.to_thread` run them. Decision: Python cannot stop a thread, so one that outlived its
rollout's deadline is left alone; the pool grows while work waits, and no thread keeps the process
from ending (those of `ThreadPoolExecutor` are waited for without limit).
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

P = ParamSpec("P")
T = TypeVar("T")
_Work = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...], dict[str, Any]]

GRACE = 2.0
"""Seconds that work under way has to end in when the event loop closes."""
FIRST = min(32, (os.cpu_count() or 1) + 4)
"""Threads started without waiting, as asyncio's own default: short functions need no more."""
_PAUSE = 0.02
"""Seconds that work may wait before the pool doubles."""

_served: WeakSet[asyncio.AbstractEventLoop] = WeakSet()


def serve(loop: asyncio.AbstractEventLoop) -> None:
    """Run what `loop` sends to threads in a pool of its own; idempotent."""
    if loop not in _served:
        _served.add(loop)
        loop.set_default_executor(Threads())


class Threads(ThreadPoolExecutor):
    """A few daemon threads, and more while work waits: in the end as many as there is work at one
    time. (A subclass, because asyncio takes no other; the base class's pool is not used.)"""

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._idle, self._closed, self._growing = 0, False, False
        self._started: list[threading.Thread] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As `Executor.submit`."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the event loop of these threads is closed")
            self._idle -= 1  # below zero: so much work waits
            self._work.put((future, fn, args, kwargs))
            if self._idle < 0:
                if len(self._started) < FIRST:
                    self._start(self._serve)
                    self._idle += 1
                elif not self._growing:
                    self._growing = True
                    threading.Thread(target=self._grow, daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End idle threads, and with `wait` give the others `GRACE` seconds; idempotent."""
        with self._lock:
            self._closed = True
            for _ in self._started:
                self._work.put(None)
        until = time.monotonic() + (GRACE if wait else 0.0)
        for thread in self._started:
            thread.join(max(0.0, until - time.monotonic()))

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name="agentloop-sync", daemon=True)
        self._started.append(thread)
        thread.start()

    def _grow(self) -> None:
        """While work waits: double the pool, pause, look again."""
        while True:
            time.sleep(_PAUSE)
            with self._lock:
                if self._closed or self._idle >= 0:
                    self._growing = False
                    return
                for _ in range(min(-self._idle, len(self._started))):
                    self._start(self._serve)
                    self._idle += 1

    def _serve(self) -> None:
        while (item := self._work.get()) is not None:
            future, fn, args, kwargs = item
            result: Any = None
            failed: BaseException | None = None
            if running := future.set_running_or_notify_cancel():
                try:
                    result = fn(*args, **kwargs)
                except SystemExit as error:  # in the task that waits it would end the event loop
                    failed = RuntimeError(f"sys.exit({error.code!r}) was called")
                except BaseException as error:  # whoever waits for the result gets it
                    failed = error
            with self._lock:  # before the result is known, which may be followed by more work
                closed, self._idle = self._closed, self._idle + 1
            if running and failed is not None:
                future.set_exception(failed)
            elif running:
                future.set_result(result)
            del item, future, fn, args, kwargs, result, failed  # idle, it keeps nothing alive
            if closed:
                return
