"""A model directory and vLLM's own environment in, a running vLLM server out. No torch here.

The base model and every loaded adapter answer side by side, each under its own model name, with a
prefix cache. The decision worth knowing: a policy's name IS its version. vLLM keys its prefix cache
by an adapter's name, so the same name with other weights would answer from the old weights' cache;
such an order is refused, and each reply therefore has exactly one policy version.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from agentloop.errors import MissingDependency, ServerError, UsageError
from agentloop.files import sha256_of
from agentloop.serving.launch import OFFLINE, PASSED, LocalServer, passed

PYTHON_VARIABLE = "AGENTLOOP_VLLM_PYTHON"
ENVIRONMENT = Path(".venv-vllm")
"""Below a workspace: vLLM pins other versions of torch's friends than the trainer needs."""
INSTALL = "make vllm   (or: agentloop setup vllm)"
MAX_RANK = 16
"""Of an adapter, as the trainer's default; vLLM pads all to it. `--max-lora-rank` overrides it."""
SIDE_BY_SIDE = 4
"""Adapters in one batch; more take turns."""

_WORKER = Path(__file__).with_name("vllm_worker.py")
_WEIGHTS = "adapter_model.safetensors"
_SET = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_DEFAULT = {"VLLM_CPU_KVCACHE_SPACE": "2"}
"""GiB; without it vLLM takes what a machine of servers would give."""
_OWN = (*_DEFAULT, "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU")


def find_python(roots: Iterable[Path], environ: Mapping[str, str] = os.environ) -> Path:
    """The interpreter that has vLLM: `$AGENTLOOP_VLLM_PYTHON`, else `.venv-vllm` of the first of
    `roots` (workspaces) that has one. Raises `UsageError` when the variable names no file,
    `MissingDependency` when there is none."""
    given = environ.get(PYTHON_VARIABLE)
    if given:
        python = Path(given).expanduser().absolute()
        if not python.is_file():
            raise UsageError(
                f"{PYTHON_VARIABLE} is `{given}`, which is no file; give an interpreter"
            )
        return python
    for root in roots:
        python = root / ENVIRONMENT / "bin" / "python"
        if python.is_file():
            return python.absolute()  # not resolved: a link's target is outside the environment
    raise MissingDependency("vLLM (in an environment of its own, .venv-vllm)", INSTALL)


class VllmServer(LocalServer):
    """One vLLM server on loopback; `options` are flags of vLLM's API server that win over the
    defaults here. Its host and port are not for them to say."""

    title = "vLLM server"
    start_seconds, stop_seconds = 300.0, 15.0

    def __init__(
        self,
        model_dir: Path,
        logs: Path,
        *,
        python: Path,
        name: str = "base",
        options: Sequence[str] = (),
    ) -> None:
        super().__init__(model_dir, logs / "vllm.log", name=name)
        self.python, self.options = python, tuple(options)
        self._versions: dict[str, str] = {}
        self._changing = asyncio.Lock()

    def _command(self) -> Sequence[str]:
        self._versions = {}  # a new process has an empty cache
        return [
            # -P: this file's folder is not a place to import from
            str(self.python), "-P", str(_WORKER), "--parent-pid", str(os.getpid()),
            "--model", str(self.model_dir), "--served-model-name", self.name,
            "--enable-lora", "--max-lora-rank", str(MAX_RANK),
            "--max-loras", str(SIDE_BY_SIDE), "--max-cpu-loras", str(4 * SIDE_BY_SIDE),
            "--enable-prefix-caching", "--enable-prompt-tokens-details",
            "--disable-uvicorn-access-log",
            # log-probs of the distribution that was sampled from, and no sampling defaults of the
            # model's own, which a request could not see
            "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm",
            *self.options, "--host", "127.0.0.1",
        ]  # fmt: skip

    def _environment(self, token: str) -> Mapping[str, str]:
        return {
            **_DEFAULT,
            **passed(*PASSED, *_OWN),
            **OFFLINE,
            **_SET,
            "VLLM_API_KEY": token,
            "AGENTLOOP_VLLM_MODEL": str(self.model_dir.resolve()),
        }

    async def load_policy(self, name: str, path: Path) -> None:
        """Serve the adapter at `path` as model `name`; idempotent. Requests in flight go on.

        Raises `ServerError` when the adapter is refused, when `name` already stood for other
        weights since the server's start, or when the server does not run.
        """
        if self.pid is None:
            raise ServerError(f"the {self.title} does not run; start it first")
        if not (path / _WEIGHTS).is_file():
            raise ServerError(f"the adapter {name} cannot be served: `{path}` has no {_WEIGHTS}")
        version = sha256_of(path / _WEIGHTS)
        async with self._changing:
            if self._versions.get(name, version) != version:
                raise ServerError(
                    f"the policy {name} already stands for other weights; "
                    "serve new weights under a new name"
                )
            if name in self._served:
                return
            await super().load_policy(name, path)
            self._versions[name] = version

    async def unload_policy(self, name: str) -> None:
        """Stop serving `name`; replies under way are finished, and one that is not served is passed
        over. Raises `ServerError` when the server does not answer."""
        async with self._changing:
            await super().unload_policy(name)
