"""A model directory in, a running local server out: start, load adapters, stop. No torch here.

The decision worth knowing: the server is a child in a session of its own that also watches its
parent, so neither a Ctrl-C meant for the runtime nor a killed runtime leaves a half-dead or an
orphaned model server behind. It says on one line of stdout where it listens.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from abc import ABC, abstractmethod
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import aiohttp

from agentloop.errors import PolicyError, ServerError
from agentloop.records import Endpoint, Json
from agentloop.trajectories.redact import Redactor
from agentloop.trajectories.redacted_log import RedactedLog

_ASK_SECONDS = 300.0
"""For an adapter to be read; on a slow disk that is all that takes time."""
_HEALTH_SECONDS = 5.0
_TAIL = 1500
PASSED = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY",
)  # fmt: skip
"""Of the runtime's environment; keys and tokens are nobody else's."""
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


class LocalServer(ABC):
    """What the servers of this machine have in common. Satisfies `ports.Server`."""

    title: str
    """How errors call it."""
    start_seconds: float
    """Deadline of a start."""
    stop_seconds: float
    """How long it may take to end by itself."""

    def __init__(self, model_dir: Path, log_file: Path, *, name: str) -> None:
        self.model_dir, self.log_file, self.name = model_dir, log_file, name
        self._process: Process | None = None
        self._log: RedactedLog | None = None
        self._endpoint: Endpoint | None = None
        self._served: set[str] = set()
        self._burial: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """What to run; it prints `{"port": N}` on stdout when it answers."""

    @abstractmethod
    def _environment(self, token: str) -> Mapping[str, str]:
        """All that the child gets to see."""

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if alive and self._process else None

    @property
    def policies(self) -> frozenset[str]:
        """Names of the adapters that are served beside the base model."""
        return frozenset(self._served) if self.pid is not None else frozenset()

    async def start(self) -> Endpoint:
        """Start it, or find it started, and wait until it answers.

        Raises `ServerError` with the end of its log when it does not within `start_seconds`, and
        `StoreError` when there is no place for the log.
        """
        async with self._lock:
            if self._endpoint is not None and self.pid is not None:
                return self._endpoint
            token = secrets.token_urlsafe(24)
            self._served = set()  # a new process has none
            process = self._process = await self._spawn(token)
            self._burial = asyncio.create_task(_bury(process))
            try:
                line = await asyncio.wait_for(_first_line(process), self.start_seconds)
                port = int(json.loads(line)["port"])
            except (TimeoutError, ValueError, KeyError, TypeError) as error:
                await self._kill()
                raise ServerError(self._failure(error)) from error
            except asyncio.CancelledError:
                await self._kill()
                raise
            base = f"http://127.0.0.1:{port}/v1"
            self._endpoint = Endpoint(base_url=base, token=token, model=self.name)
            return self._endpoint

    async def _spawn(self, token: str) -> Process:
        known = Redactor.from_environment({**os.environ, "AGENTLOOP_ENGINE_TOKEN": token})
        log = self._log = RedactedLog(self.log_file, known)
        try:
            return await asyncio.create_subprocess_exec(
                *self._command(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log.pipe,
                env=dict(self._environment(token)),
                start_new_session=True,
            )
        except OSError as error:
            raise ServerError(f"the {self.title} cannot be started: {error}") from error
        finally:
            log.release()

    def _failure(self, error: Exception) -> str:
        tail = (self._log.end(_TAIL) if self._log else "") or "its log is empty"
        late = isinstance(error, TimeoutError)
        what = f"did not answer within {self.start_seconds:.0f} s" if late else "did not start"
        return f"the {self.title} {what}: {tail}"

    async def healthy(self) -> bool:
        """Whether it answers `GET /health` with 200 within 5 s; a stopped one is not healthy."""
        if self._endpoint is None or self.pid is None:
            return False
        url = self._endpoint.base_url.removesuffix("/v1") + "/health"
        timeout = aiohttp.ClientTimeout(total=_HEALTH_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(url, headers=self._headers()) as answer,
            ):
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def load_policy(self, name: str, path: Path) -> None:
        """Serve the adapter at `path` as model `name`; idempotent (the last path wins).

        Raises `PolicyError` when the adapter is refused, another `ServerError` when the server does
        not run.
        """
        body: dict[str, Json] = {"lora_name": name, "lora_path": str(path.resolve())}
        await self._order("load_lora_adapter", body, f"the adapter {name} cannot be served")
        self._served.add(name)

    async def unload_policy(self, name: str) -> None:
        """Stop serving `name`; replies under way are finished, and one that is not served is passed
        over. Raises `ServerError` when the server does not answer."""
        if name not in self.policies:
            return
        body: dict[str, Json] = {"lora_name": name}
        await self._order("unload_lora_adapter", body, f"the adapter {name} cannot be unloaded")
        self._served.discard(name)

    async def _order(self, path: str, body: dict[str, Json], refused: str) -> None:
        """POST one order. `PolicyError` (`refused`, and what the server said) when the server finds
        fault with it, `ServerError` when it fails otherwise."""
        if self._endpoint is None or self.pid is None:
            raise ServerError(f"the {self.title} does not run; start it first")
        timeout = aiohttp.ClientTimeout(total=_ASK_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers(), timeout=timeout) as session,
                session.post(f"{self._endpoint.base_url}/{path}", json=body) as answer,
            ):
                if answer.status != 200:
                    kind = PolicyError if answer.status in (400, 404) else ServerError
                    raise kind(f"{refused}: {_said(await answer.text())}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ServerError(f"the {self.title} does not answer: {error}") from error

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._endpoint.token}"} if self._endpoint else {}

    async def stop(self) -> None:
        """Stop it; idempotent."""
        async with self._lock:
            self._endpoint = None
            await self._kill()

    async def _kill(self) -> None:
        process, self._process = self._process, None
        burial, self._burial = self._burial, None
        if process is None or burial is None:
            return
        if process.returncode is None:
            with suppress(ProcessLookupError, TimeoutError):
                process.terminate()
                await asyncio.wait_for(asyncio.shield(burial), self.stop_seconds)
        if process.returncode is None:
            _signal(process, signal.SIGKILL)
        await burial
        if self._log is not None:
            await asyncio.to_thread(self._log.wait)


class EmbeddedServer(LocalServer):
    """One embedded engine; `options` are flags of `serving.embedded`."""

    title = "embedded model server"
    start_seconds, stop_seconds = 120.0, 3.0

    def __init__(
        self, model_dir: Path, logs: Path, *, name: str = "base", options: Sequence[str] = ()
    ) -> None:
        super().__init__(model_dir, logs / "embedded.log", name=name)
        self.options = tuple(options)

    def _command(self) -> Sequence[str]:
        return [
            sys.executable, "-m", "agentloop.serving.embedded", "--model", str(self.model_dir),
            "--name", self.name, "--port", "0", "--parent-pid", str(os.getpid()), *self.options,
        ]  # fmt: skip

    def _environment(self, token: str) -> Mapping[str, str]:
        return {
            "OMP_WAIT_POLICY": "PASSIVE",
            **passed(*PASSED, "PYTHONPATH", "VIRTUAL_ENV"),
            **OFFLINE,
            # one thread allocates tensors; a second heap would only fragment
            "MALLOC_ARENA_MAX": "1",
            "AGENTLOOP_ENGINE_TOKEN": token,
        }


def passed(*names: str) -> dict[str, str]:
    """Those of the named variables that are set."""
    return {name: os.environ[name] for name in names if name in os.environ}


async def _first_line(process: Process) -> bytes:
    if process.stdout is None:
        raise ValueError("the server has no output")
    return await process.stdout.readline()


async def _bury(process: Process) -> None:
    """When the server ends, by whatever cause, all that it started ends with it. Done the moment it
    is reaped, so that its group's id cannot yet be another's."""
    await process.wait()
    _signal(process, signal.SIGKILL)


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # the whole group has ended
        os.killpg(process.pid, number)


def _said(text: str) -> str:
    """The message in an error's body, or the body."""
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(text)["error"]["message"])
    return text.strip()[:_TAIL] or "no reason given"
