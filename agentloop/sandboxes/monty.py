"""Python snippets in `pydantic-monty`: an interpreter that has no files, sockets or processes.

Code goes in; what it printed comes out, or, as in a REPL, the value of its last expression when it
printed nothing. Each run is a new session, so nothing is kept. Decision: the workers are processes
of their own, so a crash costs a worker and never this process, and they are driven from threads:
the library's own asyncio pool (1.4) can abort the interpreter at exit.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from agentloop.errors import SandboxError
from agentloop.records import SandboxResult
from agentloop.sandboxes.profile import Profile

WORKERS = 2
"""Processes at most; a snippet takes under a millisecond, so more would only wait for a CPU."""
RECURSION = 500
"""Call depth; beyond it the code gets a `RecursionError`."""


class MontySandbox:
    """A `ports.Sandbox`; may be used from one event loop after another."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="monty")
        self._lock = threading.Lock()
        self._pool: Any = None

    async def run(self, code: str) -> SandboxResult:
        """Run `code`. Raises `SandboxError` when a worker died or none could be started. When the
        caller is cancelled, code that already runs ends at its own time limit."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, code)

    async def close(self) -> None:
        """End the workers; a later run starts new ones."""
        await asyncio.to_thread(self._stop)

    def _run(self, code: str) -> SandboxResult:
        from pydantic_monty import (
            MontyCrashedError,
            MontyError,
            MontyRuntimeError,
            MontySyntaxError,
        )

        printed = _Printed(self.profile.output_bytes)
        try:
            with self._start().checkout(**self._settings()) as session:
                value = session.feed_run(code, print_callback=printed)
                if value is not None and not printed.total:
                    return _shown(session, value, printed)
        except MontyCrashedError as error:
            if not error.timed_out:
                raise SandboxError(f"the sandbox died: {_line(str(error))}") from error
            return printed.result(f"TimeoutError: {_line(str(error))}", timed_out=True)
        except (MontyRuntimeError, MontySyntaxError) as error:
            late = isinstance(error.exception(), TimeoutError) and "time limit" in str(error)
            return printed.result(_line(error.display("type-msg")), timed_out=late)
        except (MontyError, OSError) as error:
            raise SandboxError(f"the sandbox failed: {_line(str(error))}") from error
        return printed.result("")

    def _start(self) -> Any:
        from pydantic_monty import Monty

        with self._lock:
            if self._pool is None:
                try:
                    self._pool = Monty(min_processes=1, max_processes=WORKERS).__enter__()
                except (OSError, RuntimeError) as error:
                    raise SandboxError(f"the sandbox did not start: {_line(str(error))}") from error
            return self._pool

    def _stop(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.__exit__(None, None, None)

    def _settings(self) -> dict[str, Any]:
        from pydantic_monty import OSPolicy, ResourceLimits

        return {
            "limits": ResourceLimits(
                max_feed_duration_secs=self.profile.seconds,
                max_memory=self.profile.memory_mb * 2**20,
                max_recursion_depth=RECURSION,
            ),
            # Nothing waits on a clock, and the same code gives the same output.
            "os_policy": OSPolicy(sleep="zero", random_start={"seed": 0}),
        }


def _shown(session: Any, value: object, printed: _Printed) -> SandboxResult:
    """The value as its `repr`, made inside the sandbox: there it is under the limits."""
    from pydantic_monty import MontyConversionError, MontyRuntimeError

    try:
        printed("stdout", session.feed_run("repr(value)", inputs={"value": value}))
    except (MontyRuntimeError, MontyConversionError) as error:
        return printed.result(f"the last value cannot be shown, print it: {_line(str(error))}")
    return printed.result("")


class _Printed:
    """Keeps the head and the tail of what is printed, together `limit` bytes at most."""

    def __init__(self, limit: int) -> None:
        self.total = 0
        self._half = limit // 2
        self._head, self._tail = bytearray(), bytearray()

    def __call__(self, stream: str, text: str) -> None:
        data = text.encode(errors="replace")
        self.total += len(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        del self._tail[: -self._half]

    def result(self, error: str, *, timed_out: bool = False) -> SandboxResult:
        left_out = self.total - len(self._head) - len(self._tail)
        if left_out:
            head, tail = (part.decode(errors="ignore") for part in (self._head, self._tail))
            stdout = f"{head}\n... {left_out} bytes left out ...\n{tail}"
        else:
            stdout = (self._head + self._tail).decode()
        return SandboxResult(
            stdout=stdout, error=error, timed_out=timed_out, truncated=bool(left_out)
        )


def _line(text: str) -> str:
    return " ".join(text.split("\n"))[:500].strip()
