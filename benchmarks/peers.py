"""`make peers`: one pinned environment per peer in `.venv-peers/`, so that none disturbs ours.

A benchmark asks `python_of(peer)`; a peer that is not installed, or not as pinned here, is a row
with `skipped: reason`.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1] / ".venv-peers"
PEERS = {
    "gepa": ("gepa==0.1.4",),
    "openai": ("openai==3.54.0",),
    "verifiers": ("verifiers==0.4.0",),
    # With a later OpenTelemetry its tracer loses every span, and the token ids with them.
    "agentlightning": (
        "agentlightning==0.3.0", "agentops==0.4.21", "opentelemetry-api==1.39.1",
        "opentelemetry-sdk==1.39.1", "opentelemetry-exporter-otlp==1.39.1",
        "opentelemetry-instrumentation==0.60b1",
    ),
}  # fmt: skip
ABSENT = "not installed as pinned; see `make peers`"


def python_of(peer: str) -> Path | None:
    """The interpreter of a peer's environment, or `None` when it was not built as pinned."""
    mark = _mark(peer)
    built = mark.is_file() and mark.read_text(encoding="utf-8").split() == list(PEERS[peer])
    return ROOT / peer / "bin" / "python" if built else None


def _mark(peer: str) -> Path:
    return ROOT / peer / ".installed"


def build(peer: str, packages: tuple[str, ...]) -> str:
    """Make one environment, anew where it is not as pinned; what happened, in a word."""
    if python_of(peer) is not None:
        return "there"
    python = ROOT / peer / "bin" / "python"
    venv.create(ROOT / peer, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "-q", *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1:]}"
    _mark(peer).write_text("\n".join(packages) + "\n", encoding="utf-8")
    return "built"


def main() -> int:
    """Build all."""
    states = {peer: build(peer, packages) for peer, packages in PEERS.items()}
    for peer, state in states.items():
        print(f"{peer}: {state}")
    return int(any(state.startswith("failed") for state in states.values()))


if __name__ == "__main__":
    sys.exit(main())
