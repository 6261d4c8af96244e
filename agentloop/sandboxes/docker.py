"""Full Python in a container of a Docker engine: one container per run, started ahead of it.

In: a profile with a filter (`seccomp.json`), an engine on a unix socket (`DOCKER_HOST`). Out: a
sandbox whose containers have no network, rights, host files or writable root. Decision: a container
is made, attached and started before it is needed, with the interpreter waiting for its job on
stdin; a run sends the job, and its end removes the container with all that was in it. So a run
waits for no start and finds nothing of another, files travel as bytes through the same stream, and
the engine unpacks nothing. Residual risk with the usual runtime: it is one kernel, shared
(`runtime: runsc` puts another between).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from agentloop.errors import MissingDependency, SandboxError, UsageError
from agentloop.ports import Session
from agentloop.records import Program, SandboxResult
from agentloop.sandboxes.bwrap import CLAIMS
from agentloop.sandboxes.channel import LINE, LineSession, Mode, child_arguments, expect, job
from agentloop.sandboxes.docker_image import host_image
from agentloop.sandboxes.egress import ENVIRONMENT, INSIDE, broker
from agentloop.sandboxes.interpreter import interpreter
from agentloop.sandboxes.launched import FLOOD
from agentloop.sandboxes.output import Kept, drain, one_line
from agentloop.sandboxes.owned import ended, owner
from agentloop.sandboxes.profile import Profile

WARM = 2
"""Containers that stand by, each an idle interpreter of some 10 MB."""
ENGINE_SECONDS = 60.0
"""An engine that has not answered by then is broken."""
LABEL = "agentloop.owner"
NOBODY = 65534
HARDENED: dict[str, Any] = {
    "network_mode": "none",
    "ipc_mode": "none",
    "cap_drop": ["ALL"],
    "read_only": True,
    "user": f"{NOBODY}:{NOBODY}",
    "init": True,  # a signal that ends a program is ignored by process 1
    "hostname": "sandbox",
    "environment": {},
    "working_dir": "/work",
    "stdin_open": True,
}
"""What no profile can change. The limits are in `_settings`, the filter in `security_opt`."""
WITHOUT: dict[str, dict[str, Any]] = {
    "network": {"network_mode": "host"},
    "ipc": {"ipc_mode": "host"},
    "pids": {"pid_mode": "host"},
    "capabilities": {"cap_drop": None, "cap_add": ["ALL"]},
    "readonly": {"read_only": False},
    "user": {"user": "0:0"},
    "memory": {"mem_limit": None, "memswap_limit": None},
    "pid limit": {"pids_limit": None},
    "cpu": {"nano_cpus": None},
    "rlimits": {"ulimits": []},
    "disk": {"tmpfs": {"/tmp": "mode=1777", "/work": "mode=1777"}},
    "seccomp": {"security_opt": ["no-new-privileges", "seccomp=unconfined"]},
    "new privileges": {"security_opt": []},
    "files": {"volumes": {"/": {"bind": "/mnt", "mode": "rw"}}},
    "environment": {"environment": os.environ},
}
"""What each control is when it is left out: for tests of what it does, never by a profile."""


@dataclass
class _Container:
    handle: Any
    line: socket.socket
    way: ExitStack
    ended: bool = False


class DockerSandbox:
    """A `ports.Sandbox` with `ports.Programs` and `ports.Sessions`.

    Raises `MissingDependency` without the SDK, `UsageError` for a profile without a filter, an
    engine that is not on a unix socket, or an unknown control.
    """

    claims = CLAIMS

    def __init__(self, profile: Profile, without: Collection[str] = ()) -> None:
        if unknown := set(without) - set(WITHOUT):
            raise UsageError(f"unknown controls {sorted(unknown)}; known: {sorted(WITHOUT)}")
        if profile.seccomp is None:
            raise UsageError("a `docker` profile needs a filter: put `seccomp.json` beside it")
        _sdk()
        address = os.environ.get("DOCKER_HOST", "unix://")
        if not address.startswith("unix://"):
            raise UsageError(f"DOCKER_HOST is `{address}`; a sandbox needs an engine on `unix://`")
        self.profile, self._without = profile, frozenset(without)
        self._lock = threading.Lock()
        self._warm: deque[Future[_Container]] = deque()
        self._threads: ThreadPoolExecutor | None = None
        self._path = address.removeprefix("unix://") or "/var/run/docker.sock"
        self._client: Any = None
        self._runs = 0
        self._going: list[Future[None]] = []
        self._image = ""

    async def run(self, code: str) -> SandboxResult:
        """As `ports.Sandbox.run`; the value of a last expression is shown as in a REPL."""
        return await self._finish(Program(code=code), "snippet")

    async def execute(self, program: Program) -> SandboxResult:
        """As `ports.Programs.execute`."""
        return await self._finish(program, "program")

    @asynccontextmanager
    async def session(self, program: Program) -> AsyncIterator[Session]:
        """As `ports.Sessions.session`."""
        async with self._started(program, "session") as (_, wire):
            yield LineSession(
                wire.stdout, wire.writer, said=wire.stderr.last_line, most=self.profile.seconds
            )

    async def close(self) -> None:
        """Remove the containers that stand by; a later run starts new ones."""
        await asyncio.to_thread(self._stop)

    async def _finish(self, program: Program, mode: Mode) -> SandboxResult:
        profile = self.profile
        stdout = Kept(profile.output_bytes)
        async with self._started(program, mode) as (container, wire):
            state: dict[str, Any] = {}
            error = ""
            try:
                async with asyncio.timeout(profile.seconds):
                    await drain(wire.stdout, stdout, profile.output_bytes + FLOOD)
                    if max(stdout.total, wire.stderr.total) <= profile.output_bytes + FLOOD:
                        state = await _ended(container)
            except TimeoutError:
                error = f"TimeoutError: it ran longer than {profile.seconds:g} s"
        late = bool(error)
        if not late and not state:
            error = f"it printed more than {FLOOD} bytes too many"
        code = state.get("ExitCode")
        return SandboxResult(
            stdout=stdout.text(), error=error or _why(state, wire.stderr.last_line()),
            timed_out=late, truncated=bool(stdout.left_out), returncode=code,
        )  # fmt: skip

    @asynccontextmanager
    async def _started(
        self, program: Program, mode: Mode
    ) -> AsyncIterator[tuple[_Container, _Wire]]:
        profile = self.profile
        cpu = profile.session_seconds if mode == "session" else int(profile.seconds) + 1
        limits = {"AS": profile.memory_mb * 2**20, "CPU": cpu}
        data = job(program, mode, {} if "rlimits" in self._without else limits)
        container = await asyncio.shield(asyncio.wrap_future(self._take()))
        self._runs += 1
        try:
            wire = await _Wire.over(container.line, profile.output_bytes)
            try:
                await wire.greet(data)
                yield container, wire
            finally:
                await wire.close()
        finally:
            gone = self._discard(container)
            if not container.ended:
                await asyncio.shield(asyncio.wrap_future(gone))
            self._refill()

    def _take(self) -> Future[_Container]:
        """A container that stands by, or a new one."""
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(max(1, WARM), thread_name_prefix="docker")
            return self._warm.popleft() if self._warm else self._threads.submit(self._create)

    def _discard(self, container: _Container) -> Future[None]:
        """Kill and remove; one that has ended has nothing left but its name, and nobody waits."""
        with self._lock:
            assert self._threads is not None
            self._going = [future for future in self._going if not future.done()]
            self._going.append(self._threads.submit(_remove, container))
            return self._going[-1]

    def _refill(self) -> None:
        """Start containers for runs to come: after a run, which would have had to share the
        processors with their start, and no more than there were runs."""
        with self._lock:
            while self._threads is not None and len(self._warm) < min(WARM, self._runs):
                self._warm.append(self._threads.submit(self._create))

    def _create(self) -> _Container:
        """Make a container, attach to it and start it."""
        with _blamed("the sandbox did not start"), ExitStack() as way:
            client = self._connected()
            settings = self._settings()
            if self.profile.egress:
                place = way.enter_context(broker(self.profile)).place
                shown = {str(place): {"bind": INSIDE, "mode": "ro"}}
                settings["volumes"] = {**settings.get("volumes", {}), **shown}
                settings["environment"] |= ENVIRONMENT
            handle = client.containers.create(self._image, **settings)
            try:
                stream = client.api.attach_socket(
                    handle.id, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
                )
                line = stream._sock.dup()
                stream._sock.close()
                stream._response.close()
                handle.start()
            except BaseException:
                handle.remove(force=True, v=True)
                raise
            return _Container(handle, line, way.pop_all())

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                with socket.socket(socket.AF_UNIX) as line:
                    line.connect(self._path)  # where nobody answers the SDK leaks a socket
                client = _sdk().DockerClient.from_env(timeout=ENGINE_SECONDS)
                with ExitStack() as unless:
                    unless.callback(client.close)
                    _sweep(client)
                    self._image = self.profile.image or host_image(client)
                    self._client = client
                    unless.pop_all()
            return self._client

    def _settings(self) -> dict[str, Any]:
        """All that a container is made with."""
        profile, sdk = self.profile, _sdk()
        assert profile.seccomp is not None
        python = "python3" if profile.image else str(interpreter().executable)
        memory, disk = profile.memory_mb * 2**20, profile.disk_mb
        ulimits = {"nofile": 256, "fsize": disk * 2**20, "core": 0}
        settings = {
            **HARDENED,
            "entrypoint": [python, *child_arguments(0, 1)],
            "security_opt": ["no-new-privileges", f"seccomp={profile.seccomp.read_text()}"],
            "mem_limit": memory,
            "memswap_limit": memory,
            "nano_cpus": int(profile.cpu * 1e9),
            "pids_limit": profile.pids + 2,  # the init and the program itself
            "ulimits": [sdk.types.Ulimit(name=n, soft=m, hard=m) for n, m in ulimits.items()],
            "tmpfs": {
                "/tmp": f"size={disk}m,nr_inodes=8192,mode=1777,nosuid,nodev",
                "/work": f"size={disk}m,nr_inodes=8192,mode=700,uid={NOBODY},gid={NOBODY},"
                "nosuid,nodev",
            },
            "log_config": sdk.types.LogConfig(type="none"),
            "labels": {LABEL: owner()},
            "runtime": profile.runtime,
        }
        for control in self._without:
            settings |= WITHOUT[control]
        return {**settings, "environment": dict(settings["environment"])}

    def _stop(self) -> None:
        with self._lock:
            threads, self._threads = self._threads, None
            warm, self._warm = self._warm, deque()
        for future in warm:
            if not future.cancel():
                with contextlib.suppress(SandboxError):
                    _remove(future.result())
        if threads is not None:
            threads.shutdown()  # and what was on its way out is gone
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


class _Wire:
    """What a container says, taken apart: its stdout (replies, or what it prints) and stderr."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int
    ) -> None:
        self._reader, self.writer, self._most = reader, writer, most
        self.stdout, self.stderr = asyncio.StreamReader(limit=LINE), Kept(most)
        self._pump = asyncio.ensure_future(self._read())

    @classmethod
    async def over(cls, line: socket.socket, most: int) -> _Wire:
        """The wire over an attached socket."""
        return cls(*await asyncio.open_connection(sock=line), most)

    async def greet(self, data: bytes) -> None:
        """The handshake. Raises `SandboxError` with the last that was said on stderr."""
        try:
            async with asyncio.timeout(ENGINE_SECONDS):
                await expect(self.stdout, "hello")
                self.writer.write(data)
                await self.writer.drain()
                await expect(self.stdout, "ready")
        except (SandboxError, TimeoutError, OSError) as error:
            why = self.stderr.last_line() or str(error) or "it took too long"
            raise SandboxError(f"the sandbox did not start: {why}") from error

    async def close(self) -> None:
        """No more is read."""
        self._pump.cancel()
        await asyncio.wait([self._pump])
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def _read(self) -> None:
        """The engine's frames: 1 byte which stream, 3 of nothing, 4 of length, then the text."""
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while self.stderr.total <= self._most + FLOOD:
                head = await self._reader.readexactly(8)
                left = int.from_bytes(head[4:], "big")
                while left:
                    part = await self._reader.read(min(left, 65536))
                    if not part:
                        break
                    left -= len(part)
                    await self._give(part, head[0])
        self.stdout.feed_eof()

    async def _give(self, part: bytes, stream: int) -> None:
        if stream == 2:
            self.stderr.add(part)
            return
        self.stdout.feed_data(part)
        while len(self.stdout._buffer) > 2 * LINE:  # type: ignore[attr-defined]
            await asyncio.sleep(0.001)  # nobody reads: the program has to wait


async def _ended(container: _Container) -> dict[str, Any]:
    """The state of a container whose streams have ended, once it has ended itself."""
    while True:
        with _blamed("the sandbox broke"):
            await asyncio.to_thread(container.handle.reload)
        state: dict[str, Any] = container.handle.attrs["State"]
        if not state["Running"]:
            container.ended = True
            return state
        await asyncio.sleep(0.01)


def _why(state: dict[str, Any], said: str) -> str:
    """Why it ended so; empty when it ended well."""
    code = state.get("ExitCode") or 0
    if state.get("OOMKilled"):
        return "MemoryError: out of memory"
    known = code > 128 and code - 128 in set(signal.Signals)
    killed = f"ended by {signal.Signals(code - 128).name}" if known else ""
    return said or killed or f"exit status {code}" if code else ""


def _remove(container: _Container) -> None:
    """Kill and remove; gone already is as good."""
    container.line.close()
    with _blamed("a container could not be removed"), container.way:
        try:
            container.handle.remove(force=True, v=True)
        except _sdk().errors.NotFound:
            pass


def _sweep(client: Any) -> None:
    """Remove what processes of this machine left that have ended since."""
    for found in client.containers.list(all=True, ignore_removed=True, filters={"label": LABEL}):
        if ended(found.labels[LABEL]):
            with contextlib.suppress(_sdk().errors.NotFound):
                found.remove(force=True, v=True)


@contextmanager
def _blamed(what: str) -> Iterator[None]:
    """The engine's faults as a `SandboxError`."""
    try:
        yield
    except (_sdk().errors.DockerException, OSError) as error:  # an OSError: what requests raises
        raise SandboxError(f"{what}: {one_line(str(error))}") from error


def _sdk() -> Any:
    try:
        import docker
    except ImportError:
        raise MissingDependency("docker", "pip install 'agentloop[docker]'") from None
    return docker
