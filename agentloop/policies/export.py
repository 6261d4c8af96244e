"""A policy as a model of its own: a directory that any engine loads without its base.

In: a policy's id. Out: a safetensors directory with weights, configuration and tokenizer, written
whole, with a manifest. The weights are put together in a process of its own, because that needs
torch.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from pathlib import Path

from agentloop.errors import TrainingError, UsageError
from agentloop.files import new_directory, write_manifest
from agentloop.policies.registry import Policies

_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


async def export(policies: Policies, name: str, target: Path, *, deadline: float = 900.0) -> Path:
    """Write policy `name` with its base to `target`, which must not exist; within `deadline` s.

    Raises `UnknownName`, `UsageError` when `target` is there or the base is not, `StoreError` when
    the policy was damaged, `TrainingError` when the process fails or is late; then nothing is left.
    """
    policy, directory = policies.load(name), policies.path(name)
    base = Path(policy.base)
    if not (base / "config.json").is_file():
        raise UsageError(f"the base model `{base}` of `{name}` is not there; put it back first")
    if target.exists():
        raise UsageError(f"`{target}` is there already; give a folder that is not")
    try:
        with new_directory(target) as draft:
            await _merge(base, directory, draft, deadline)
            about = {"policy": name, "base": policy.base, "sha256": policy.sha256}
            write_manifest(draft, about)
    except FileExistsError:
        raise UsageError(f"`{target}` was made meanwhile; give a folder that is not") from None
    return target


async def _merge(base: Path, policy: Path, out: Path, deadline: float) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agentloop.training.merge", str(base), str(policy), str(out),
        stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, env={**os.environ, **_OFFLINE},
    )  # fmt: skip
    try:
        async with asyncio.timeout(deadline):
            _, said = await process.communicate()
    except TimeoutError:
        raise TrainingError(f"the export was stopped at its deadline of {deadline:g} s") from None
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    lines = said.decode(errors="replace").strip().splitlines()
    if process.returncode == 2:
        raise UsageError(lines[-1])
    if process.returncode != 0:
        raise TrainingError(f"the export failed: {lines[-1] if lines else process.returncode}")
