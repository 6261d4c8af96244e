"""Run programs as processes of this machine: everything that is the same behind any walls.

In: a `Profile` and `Walls`, which say how to start an interpreter. Out: a sandbox that runs
snippets and programs and holds sessions. Order of a start: the child says `hello` (so a sandbox
that does not start is never taken for code that fails), `Start.joined` puts it under limits that
need its pid, it gets its job and says `ready`, and only then does untrusted code run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from agentloop.errors import SandboxError
from agentloop.ports import Session
from agentloop.records import Program, SandboxResult
from agentloop.sandboxes.channel import LINE, LineSession, Mode, child_arguments, expect, job
from agentloop.sandboxes.output import Kept, drain, one_line
from agentloop.sandboxes.profile import Profile

START_SECONDS = 30.0
"""A sandbox that has not started by then is broken."""
END_SECONDS = 5.0
"""Until all that was killed is gone and the last output is read."""
FLOOD = 2**20
"""Bytes beyond the profile's `output_bytes` that end a program."""


@dataclass(frozen=True)
class Start:
    """How to start an interpreter behind walls: the command up to and with it, where, which
    descriptors it keeps, what is to be done with the started process, and why it was killed if
    the walls know (out of memory)."""

    command: tuple[str, ...]
    folder: str = "/"
    descriptors: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    joined: Callable[[int], None] = lambda pid: None
    verdict: Callable[[], str] = lambda: ""


class Walls(Protocol):
    """What surrounds one program. `own_user`: nobody else's processes count as its own."""

    own_user: bool

    def raised(self) -> AbstractContextManager[Start]:
        """Set up what one program needs; leaving the context takes all of it away. Raises
        `SandboxError` (or `OSError`) when it cannot be set up."""
        ...


@dataclass
class _Running:
    process: Process
    start: Start
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    stdout: Kept
    stderr: Kept
    drains: tuple[asyncio.Task[None], asyncio.Task[None]]


class Launched:
    """A `ports.Sandbox` with `ports.Programs` and `ports.Sessions`; each run starts anew."""

    def __init__(self, profile: Profile, walls: Walls, without: Collection[str] = ()) -> None:
        self.profile, self._walls, self._without = profile, walls, frozenset(without)

    async def run(self, code: str) -> SandboxResult:
        """As `ports.Sandbox.run`; the value of a last expression is shown as in a REPL."""
        return await self._finish(Program(code=code), "snippet")

    async def execute(self, program: Program) -> SandboxResult:
        """As `ports.Programs.execute`."""
        return await self._finish(program, "program")

    @asynccontextmanager
    async def session(self, program: Program) -> AsyncIterator[Session]:
        """As `ports.Sessions.session`."""
        async with self._started(program, "session") as running:
            yield LineSession(
                running.reader, running.writer,
                said=running.stderr.last_line, most=self.profile.seconds,
            )  # fmt: skip

    async def close(self) -> None:
        """Nothing outlives a run."""

    async def _finish(self, program: Program, mode: Mode) -> SandboxResult:
        async with self._started(program, mode) as running:
            ended = asyncio.ensure_future(_exited(running.process))
            waiting = {ended, *running.drains}
            try:
                async with asyncio.timeout(self.profile.seconds):
                    while not ended.done() and not _flooded(running, self.profile):
                        _, waiting = await asyncio.wait(
                            waiting, return_when=asyncio.FIRST_COMPLETED
                        )
            except TimeoutError:
                late = f"TimeoutError: it ran longer than {self.profile.seconds:g} s"
                return await _result(running, late, timed_out=True)
            finally:
                ended.cancel()
            if _flooded(running, self.profile):
                return await _result(running, f"it printed more than {FLOOD} bytes too many")
            return await _result(running)

    @asynccontextmanager
    async def _started(self, program: Program, mode: Mode) -> AsyncIterator[_Running]:
        data = job(program, mode, self._limits(mode))
        with contextlib.ExitStack() as stack:
            try:
                start = stack.enter_context(self._walls.raised())
                running = await _spawn(start, self.profile.output_bytes)
            except OSError as error:
                raise SandboxError(f"the sandbox did not start: {one_line(str(error))}") from error
            try:
                await _greet(running, data)
                yield running
            finally:
                await _surely(_end(running))

    def _limits(self, mode: Mode) -> dict[str, int]:
        profile = self.profile
        if "rlimits" in self._without:
            return {}
        cpu = profile.session_seconds if mode == "session" else int(profile.seconds) + 1
        return {
            "AS": profile.memory_mb * 2**20, "CPU": cpu, "FSIZE": profile.disk_mb * 2**20,
            "NOFILE": 256, "CORE": 0, **({"NPROC": profile.pids} if self._walls.own_user else {}),
        }  # fmt: skip


async def _spawn(start: Start, output_bytes: int) -> _Running:
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            descriptor = theirs.fileno()
            process = await asyncio.create_subprocess_exec(
                *start.command, *child_arguments(descriptor, descriptor),
                stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=start.environment, cwd=start.folder,
                start_new_session=True, pass_fds=(descriptor, *start.descriptors),
            )  # fmt: skip
        reader, writer = await asyncio.open_connection(sock=ours, limit=LINE)
    except BaseException:
        ours.close()
        raise
    assert process.stdout and process.stderr
    kept = Kept(output_bytes), Kept(output_bytes)
    drains = tuple(
        asyncio.ensure_future(drain(stream, one, output_bytes + FLOOD))
        for stream, one in zip((process.stdout, process.stderr), kept, strict=True)
    )
    return _Running(process, start, reader, writer, *kept, drains)  # type: ignore[arg-type]


async def _greet(running: _Running, data: bytes) -> None:
    """The handshake. Raises `SandboxError` with the last that was said on stderr."""
    try:
        async with asyncio.timeout(START_SECONDS):
            await expect(running.reader, "hello")
            running.start.joined(running.process.pid)
            running.writer.write(data)
            await running.writer.drain()
            await expect(running.reader, "ready")
    except (SandboxError, TimeoutError, OSError) as error:
        await _surely(_end(running))
        # A fault of ours makes the child complain that the host is gone, which explains nothing.
        ours = isinstance(error, OSError) and not isinstance(error, TimeoutError)
        said = "" if ours else running.stderr.last_line()
        why = said or one_line(str(error)) or "it took too long"
        raise SandboxError(f"the sandbox did not start: {why}") from error


async def _exited(process: Process) -> None:
    """Until the process itself has ended and its status is known; asyncio's own `wait` also waits
    for whoever holds its stdout."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(process.pid)
        loop.add_reader(pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
    while process.returncode is None:
        await asyncio.sleep(0.001)  # asyncio learns it from a thread of its own


def _flooded(running: _Running, profile: Profile) -> bool:
    return max(running.stdout.total, running.stderr.total) > profile.output_bytes + FLOOD


async def _result(running: _Running, error: str = "", *, timed_out: bool = False) -> SandboxResult:
    await _end(running)
    code = None if error else running.process.returncode
    if code is not None and code < 0:
        code = 128 - code
    if code and not error:
        killed = f"ended by {signal.Signals(code - 128).name}" if _is_signal(code) else ""
        told = running.start.verdict() or running.stderr.last_line()
        error = told or killed or f"exit status {code}"
    return SandboxResult(
        stdout=running.stdout.text(), error=error, timed_out=timed_out,
        truncated=bool(running.stdout.left_out), returncode=code,
    )  # fmt: skip


def _is_signal(code: int) -> bool:
    return code > 128 and code - 128 in set(signal.Signals)


async def _end(running: _Running) -> None:
    """Kill what is left of the process and its group, and read what it had said; idempotent."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(running.process.pid, signal.SIGKILL)
    running.writer.close()
    await _exited(running.process)
    _, late = await asyncio.wait(running.drains, timeout=END_SECONDS)
    for task in late:
        task.cancel()
    transport = running.process._transport  # type: ignore[attr-defined]
    transport.close()


async def _surely(work: Coroutine[Any, Any, None]) -> None:
    """Await `work` to its end, which comes soon, though the caller is cancelled meanwhile."""
    task, cancelled = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError
