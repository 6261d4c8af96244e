"""Python snippets in `pydantic-monty`: an interpreter that has no files, sockets or processes.

Code goes in; what it printed comes out, or, as in a REPL, the value of its last expression when it
printed nothing. Each run is a new session, so nothing is kept; a `session` is one that answers
lines. Decision: the workers are processes
of their own, so a crash costs a worker and never this process, and they are driven from threads:
the library's own asyncio pool (1.4) can abort the interpreter at exit.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from agentloop.errors import SandboxError, SessionEnded, UsageError
from agentloop.ports import Session
from agentloop.records import Json, Program, SandboxResult
from agentloop.sandboxes.channel import LINE, one_question
from agentloop.sandboxes.output import Kept, one_line
from agentloop.sandboxes.profile import Profile

WORKERS = 2
"""Processes at most; a snippet takes under a millisecond, so more would only wait for a CPU."""
SESSIONS = 8
"""Sessions at once, each with a process of its own; one more waits until one ends."""
RECURSION = 500
"""Call depth; beyond it the code gets a `RecursionError`."""


class MontySandbox:
    """A `ports.Sandbox`; may be used from one event loop after another."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="monty")
        self._lock = threading.Lock()
        self._sessions = threading.Semaphore(SESSIONS)
        self._pool: Any = None

    async def run(self, code: str) -> SandboxResult:
        """Run `code`. Raises `SandboxError` when a worker died or none could be started. When the
        caller is cancelled, code that already runs ends at its own time limit."""
        return await self.run_with(code, {})

    async def run_with(
        self, code: str, functions: Mapping[str, Callable[..., Json]]
    ) -> SandboxResult:
        """As `ports.Lends.run_with`; the functions are called from another thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._run, code, functions)

    @asynccontextmanager
    async def session(self, program: Program) -> AsyncIterator[Session]:
        """As `ports.Sessions.session`, for code alone: raises `UsageError` for files or arguments.
        A question that takes too long ends the session, whose worker stops at its own limit."""
        if program.files or program.arguments:
            raise UsageError("monty has no files and no arguments; put what they hold in the code")
        opened = _MontySession(self, program.code)
        try:
            await opened.start()
            yield opened
        finally:
            opened.close()

    async def close(self) -> None:
        """End the workers; a later run starts new ones."""
        await asyncio.to_thread(self._stop)

    def _run(self, code: str, lent: Mapping[str, Callable[..., Json]]) -> SandboxResult:
        from pydantic_monty import (
            MontyCrashedError,
            MontyError,
            MontyRuntimeError,
            MontySyntaxError,
        )

        printed = Kept(self.profile.output_bytes)
        try:
            with self._start().checkout(**self._settings()) as session:
                value = session.feed_run(
                    code, external_lookup=dict(lent),
                    print_callback=lambda _, text: printed.write(text),
                )  # fmt: skip
                if value is not None and not printed.total:
                    return _shown(session, value, printed)
        except MontyCrashedError as error:
            if not error.timed_out:
                raise SandboxError(f"the sandbox died: {one_line(str(error))}") from error
            return _result(printed, f"TimeoutError: {one_line(str(error))}", timed_out=True)
        except (MontyRuntimeError, MontySyntaxError) as error:
            late = isinstance(error.exception(), TimeoutError) and "time limit" in str(error)
            return _result(printed, one_line(error.display("type-msg")), timed_out=late)
        except (MontyError, OSError) as error:
            raise SandboxError(f"the sandbox failed: {one_line(str(error))}") from error
        return _result(printed)

    def _start(self) -> Any:
        from pydantic_monty import Monty

        with self._lock:
            if self._pool is None:
                try:
                    pool = Monty(min_processes=1, max_processes=WORKERS + SESSIONS)
                    self._pool = pool.__enter__()
                except (OSError, RuntimeError) as error:
                    why = one_line(str(error))
                    raise SandboxError(f"the sandbox did not start: {why}") from error
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


class _MontySession:
    """One worker and one thread that talks to it, because the library's calls block."""

    def __init__(self, sandbox: MontySandbox, code: str) -> None:
        self._sandbox, self._code = sandbox, code
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="monty-session")
        self._session: Any = None
        self._ended = ""

    async def start(self) -> None:
        """Wait for a worker and run the code there."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._start)

    async def ask(self, line: str, *, seconds: float) -> str:
        """As `ports.Session.ask`."""
        one_question(line)
        if self._ended:
            raise SessionEnded(self._ended)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(min(seconds, self._sandbox.profile.seconds)):
                answer = await loop.run_in_executor(self._thread, self._feed, "answer(line)", line)
        except BaseException as error:
            late = isinstance(error, TimeoutError)
            self._ended = f"no answer within {seconds:g} s" if late else str(error)
            if late:
                raise SessionEnded(self._ended) from None
            raise
        if not isinstance(answer, str) or "\n" in answer or len(answer.encode()) > LINE:
            self._ended = f"answer() must return a line of {LINE} bytes at most"
            raise SessionEnded(self._ended)
        return answer

    def close(self) -> None:
        """Give the worker back, after what it may still be doing."""
        self._thread.submit(self._stop)
        self._thread.shutdown(wait=False)

    def _start(self) -> None:
        self._sandbox._sessions.acquire()
        try:
            session = self._sandbox._start().checkout(**self._sandbox._settings())
            self._session = session.__enter__()
        except BaseException:
            self._sandbox._sessions.release()
            raise
        try:
            self._feed(self._code, None)
        except SessionEnded as error:
            self._ended = str(error)

    def _feed(self, code: str, line: str | None) -> object:
        from pydantic_monty import MontyCrashedError, MontyError

        inputs = {} if line is None else {"line": line}
        try:
            return self._session.feed_run(code, inputs=inputs, print_callback=lambda *_: None)
        except MontyCrashedError as error:
            if error.timed_out:
                raise SessionEnded(f"no answer in time: {one_line(str(error))}") from error
            raise SandboxError(f"the sandbox died: {one_line(str(error))}") from error
        except MontyError as error:
            raise SessionEnded(f"it ended early: {one_line(str(error))}") from error

    def _stop(self) -> None:
        if self._session is not None:
            self._session.__exit__(None, None, None)
            self._sandbox._sessions.release()


def _shown(session: Any, value: object, printed: Kept) -> SandboxResult:
    """The value as its `repr`, made inside the sandbox: there it is under the limits."""
    from pydantic_monty import MontyConversionError, MontyRuntimeError

    try:
        printed.write(session.feed_run("repr(value)", inputs={"value": value}))
    except (MontyRuntimeError, MontyConversionError) as error:
        why = one_line(str(error))
        return _result(printed, f"the last value cannot be shown, print it: {why}")
    return _result(printed)


def _result(printed: Kept, error: str = "", *, timed_out: bool = False) -> SandboxResult:
    return SandboxResult(
        stdout=printed.text(), error=error, timed_out=timed_out, truncated=bool(printed.left_out)
    )
