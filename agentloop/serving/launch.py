"""A model directory in, a running embedded server out: start, load adapters, stop. No torch here.

The decision worth knowing: the server is a child in a session of its own that also watches its
parent, so neither a Ctrl-C meant for the runtime nor a killed runtime leaves a half-dead or an
orphaned model server behind.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from agentloop.errors import ServerError
from agentloop.records import Endpoint

START_SECONDS = 120.0
_STOP_SECONDS = 3.0
_PASSED = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "OMP_WAIT_POLICY",
)  # fmt: skip
_SET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
    "MALLOC_ARENA_MAX": "1",  # one thread allocates tensors; a second heap would only fragment
}


class EmbeddedServer:
    """One embedded engine. Satisfies `ports.Server`; `options` are flags of `serving.embedded`."""

    def __init__(
        self, model_dir: Path, logs: Path, *, name: str = "base", options: Sequence[str] = ()
    ) -> None:
        self.model_dir, self.logs, self.name = model_dir, logs, name
        self.options = tuple(options)
        self._process: asyncio.subprocess.Process | None = None
        self._endpoint: Endpoint | None = None
        self._lock = asyncio.Lock()

    @property
    def log_file(self) -> Path:
        """Where the server's stderr goes."""
        return self.logs / "embedded.log"

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if alive and self._process else None

    async def start(self) -> Endpoint:
        """Start it, or find it started, and wait until it answers.

        Raises `ServerError` with the end of its log when it does not within 120 s.
        """
        async with self._lock:
            if self._endpoint is not None and self.pid is not None:
                return self._endpoint
            token = secrets.token_urlsafe(24)
            process = await self._spawn(token)
            self._process = process
            try:
                line = await asyncio.wait_for(_first_line(process), START_SECONDS)
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

    async def _spawn(self, token: str) -> asyncio.subprocess.Process:
        self.logs.mkdir(parents=True, exist_ok=True)
        environment = {key: os.environ[key] for key in _PASSED if key in os.environ}
        environment = {"OMP_WAIT_POLICY": "PASSIVE"} | environment | _SET
        environment["AGENTLOOP_ENGINE_TOKEN"] = token
        command = [
            sys.executable, "-m", "agentloop.serving.embedded", "--model", str(self.model_dir),
            "--name", self.name, "--port", "0", "--parent-pid", str(os.getpid()), *self.options,
        ]  # fmt: skip
        with self.log_file.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def _failure(self, error: Exception) -> str:
        text = self.log_file.read_text(encoding="utf-8", errors="replace").strip()
        tail = text[-1500:].strip() or "its log is empty"
        late = isinstance(error, TimeoutError)
        what = f"did not answer within {START_SECONDS:.0f} s" if late else "did not start"
        return f"the embedded model server {what}: {tail}"

    async def load_policy(self, name: str, path: Path) -> None:
        """Serve the adapter at `path` as model `name`; idempotent (the last path wins).

        Raises `ServerError` when the adapter is refused or the server does not run.
        """
        if self._endpoint is None or self.pid is None:
            raise ServerError("the embedded model server does not run; start it first")
        url = f"{self._endpoint.base_url}/load_lora_adapter"
        headers = {"Authorization": f"Bearer {self._endpoint.token}"}
        body = {"lora_name": name, "lora_path": str(path.resolve())}
        timeout = aiohttp.ClientTimeout(total=300)
        try:
            async with (
                aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
                session.post(url, json=body) as answer,
            ):
                if answer.status != 200:
                    said = (await answer.json())["error"]["message"]
                    raise ServerError(f"the adapter {name} cannot be served: {said}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ServerError(f"the embedded model server does not answer: {error}") from error

    async def stop(self) -> None:
        """Stop it; idempotent."""
        async with self._lock:
            self._endpoint = None
            await self._kill()

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.returncode is not None:
                break
            try:
                process.send_signal(number)
                await asyncio.wait_for(process.wait(), _STOP_SECONDS)
            except ProcessLookupError:
                break  # it ended by itself meanwhile
            except TimeoutError:
                continue
        await process.wait()


async def _first_line(process: asyncio.subprocess.Process) -> bytes:
    if process.stdout is None:
        raise ValueError("the server has no output")
    return await process.stdout.readline()
