"""Run an agent that is a program of its own, in any language, once per rollout.

In: a rollout's name, its task and the model lent to it. Out: what the program printed last, or
"" when it printed nothing. The program reads the task on stdin (and in `AGENTLOOP_TASK`, unless
it is too long for that) and finds its model where OpenAI's clients look for it: `OPENAI_BASE_URL`,
`OPENAI_API_KEY`, `OPENAI_MODEL`. Decision: a status other than 0 is no result but a fault, told
as the error of its last model call when that failed, and so is silence without a last reply; when
the rollout is over, however it ends, the whole process group is killed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from agentloop.errors import AgentLoopError, UsageError
from agentloop.ports import Model
from agentloop.records import Endpoint

if TYPE_CHECKING:
    from agentloop.gateway.server import Gateway

OUTPUT_BYTES = 64 * 1024
"""Kept of each output stream: its end."""
_TASK_BYTES = 100_000  # Linux allows 128 KiB for one variable
_LEASH = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Becomes the program, once Linux was told to kill it when the runtime dies (PR_SET_PDEATHSIG)."""
_LAST_WORDS = 1.0
"""Seconds to wait for output that is still in the pipes when the program has ended."""
_PASSED = (
    "PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "NODE_PATH",
    "LD_LIBRARY_PATH", "SSL_CERT_FILE",
)  # fmt: skip
"""What a program needs to be found and to run. Keys and tokens are not among it."""


class ProgramFailed(AgentLoopError):
    """The agent's program ended with a status other than 0, or without an answer of any kind."""


def resolve_command(command: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    """`command` with its `./` words as paths in `folder`. Raises `UsageError` when the program or
    such a file is not there."""
    folder = folder.absolute()  # a program runs in a directory of its own
    words = tuple(str(folder / word[2:]) if word.startswith("./") else word for word in command)
    for given, word in zip(command, words, strict=True):
        if given != word and not Path(word).exists():
            raise UsageError(f"`command` names `{given}`, and there is no such file in `{folder}`")
    relative = os.path.dirname(words[0]) and not os.path.isabs(words[0])
    if relative or shutil.which(words[0]) is None:
        raise UsageError(
            f"`command` starts `{command[0]}`, which is not an executable program on the PATH; "
            "install it, or write a path that begins with ./"
        )
    return words


@dataclass(frozen=True)
class Program:
    """`command` is resolved (see `resolve_command`); `gateway` runs."""

    command: tuple[str, ...]
    gateway: Gateway

    async def drive(self, rollout: str, task: str, model: Model) -> str:
        """One rollout. Raises `ProgramFailed`, the error of the program's last model call, or
        `UsageError` when the program cannot be started."""
        session = self.gateway.open(rollout, model)
        try:
            with tempfile.TemporaryDirectory(
                prefix="agentloop-", ignore_cleanup_errors=True
            ) as scratch:
                environment = child_environment(self.gateway.endpoint(rollout), task)
                child = await self._run(task, environment, scratch)
        finally:
            self.gateway.close(rollout)
        printed = child.text(1).strip()
        if printed and child.status == 0:
            return printed
        if session.error is not None:
            raise session.error
        if child.status != 0 or session.reply is None:
            raise ProgramFailed(self._fault(child))
        return session.reply.message.content

    async def _run(self, task: str, environment: dict[str, str], scratch: str) -> _Child:
        loop = asyncio.get_running_loop()
        try:
            transport, child = await loop.subprocess_exec(
                _Child, *leashed(self.command), cwd=scratch, env=environment, start_new_session=True
            )
        except (OSError, ValueError) as error:
            raise UsageError(f"`{self.command[0]}` could not be started: {error}") from error
        try:
            stdin = cast(asyncio.WriteTransport, transport.get_pipe_transport(0))
            stdin.write(task.encode("utf-8", "replace"))
            stdin.write_eof()
            await child.exited.wait()
            child.status = transport.get_returncode()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(transport.get_pid(), signal.SIGKILL)
            try:  # until it is reaped; and what a process outside the group holds open is let go
                with suppress(TimeoutError):
                    await asyncio.wait_for(child.closed.wait(), _LAST_WORDS)
            finally:
                transport.close()
        return child

    def _fault(self, child: _Child) -> str:
        last = next((one for one in reversed(child.text(2).splitlines()) if one.strip()), "")
        return f"`{Path(self.command[0]).name}` ended with status {child.status}: {last.strip()}"


def leashed(command: tuple[str, ...]) -> tuple[str, ...]:
    """`command` such that it ends with this process even when that is killed; where the system has
    no such thing, as it is."""
    if sys.platform != "linux":
        return command
    return (sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid()), *command)


class _Child(asyncio.SubprocessProtocol):
    """The ends of a program's output and its state."""

    def __init__(self) -> None:
        self.exited, self.closed = asyncio.Event(), asyncio.Event()
        self.status: int | None = None
        self._ends = {1: bytearray(), 2: bytearray()}

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        if isinstance(data, bytes):
            end = self._ends[fd]
            end += data
            del end[:-OUTPUT_BYTES]

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    def text(self, fd: int) -> str:
        """What was printed last on stdout (1) or stderr (2)."""
        return self._ends[fd].decode("utf-8", "replace")


def child_environment(endpoint: Endpoint, task: str) -> dict[str, str]:
    """The whole environment of a program."""
    environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
    environment |= {
        "OPENAI_BASE_URL": endpoint.base_url,
        "OPENAI_API_KEY": endpoint.token,
        "OPENAI_MODEL": endpoint.model,
        "NO_PROXY": "127.0.0.1,localhost",
    }
    if "\0" not in task and len(task.encode("utf-8", "replace")) <= _TASK_BYTES:
        environment["AGENTLOOP_TASK"] = task
    return environment
