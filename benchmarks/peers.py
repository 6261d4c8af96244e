"""`make peers`: one pinned environment per peer in `.venv-peers/`, so that none disturbs ours.

A benchmark asks `python_of(peer)`; a peer that is not installed is a row with `skipped: reason`.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(".venv-peers")
PEERS = {
    "gepa": ("gepa==0.1.4",),
    "openai": ("openai==3.54.0",),
    "verifiers": ("verifiers==0.4.*",),
    "agentlightning": ("agentlightning==0.3.*",),
}


def python_of(peer: str) -> Path | None:
    """The interpreter of a peer's environment, or `None` when it was not built."""
    python = ROOT / peer / "bin" / "python"
    return python if python.is_file() else None


def build(peer: str, packages: tuple[str, ...]) -> str:
    """Make one environment; what happened, in a word."""
    if python_of(peer) is not None:
        return "there"
    venv.create(ROOT / peer, with_pip=True)
    command = [str(ROOT / peer / "bin" / "python"), "-m", "pip", "install", "-q", *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "built" if done.returncode == 0 else f"failed: {done.stderr.strip().splitlines()[-1:]}"


def main() -> int:
    """Build all."""
    states = {peer: build(peer, packages) for peer, packages in PEERS.items()}
    for peer, state in states.items():
        print(f"{peer}: {state}")
    return int(any(state.startswith("failed") for state in states.values()))


if __name__ == "__main__":
    sys.exit(main())
