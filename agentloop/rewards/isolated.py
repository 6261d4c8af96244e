"""Call a function that may hang, in a process that can be killed.

In: a function's reference and JSON arguments. Out: its JSON result, or `TooCostly`. One worker
serves a whole process and is replaced after a call that had to be killed. The worker arms timers
whose default action ends it, so even one stuck in C code stops by itself, and it exits when its
input closes, so it never outlives its parent. It gets no secrets of the environment. A deadline is
in seconds of CPU: a loaded machine must not make an answer wrong.

    python -m agentloop.rewards.isolated      one JSON request a line in, one JSON reply a line out
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from typing import IO, Any

from agentloop.errors import GraderError
from agentloop.records import Json
from agentloop.refs import resolve

_MODULE = "agentloop.rewards.isolated"
MEMORY = 4 * 2**30
"""Bytes of address space of the worker."""
_STARTUP = 120.0
"""Seconds that importing the function may take before its own deadline starts."""
_WAITING = 6.0
"""Seconds of wall time per second of CPU that a call may have."""
_KILLED = (-signal.SIGPROF, -signal.SIGALRM, -signal.SIGKILL)
"""Ends of a worker that its call is to blame for: its two timers, the system's lack of memory."""
_KEPT = ("PATH", "LANG", "LC_ALL", "HOME", "TMPDIR", "PYTHONHASHSEED")


class TooCostly(Exception):
    """The call needed more time, memory or recursion than it may have: its arguments' doing."""


class Worker:
    """One child process, started by the first call; calls from several threads take turns."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, reference: str, arguments: dict[str, Json], *, seconds: float) -> Json:
        """`reference(**arguments)` within `seconds` of CPU.

        Raises `TooCostly`, or `GraderError` when the function raised.
        """
        request = {"call": reference, "arguments": arguments, "seconds": seconds}
        with self._turn:
            reply = self._exchange(
                json.dumps(request).encode() + b"\n", seconds * _WAITING + _STARTUP
            )
        if "costly" in reply:
            raise TooCostly(f"`{reference}` {reply['costly']}")
        if "error" in reply:
            raise GraderError(f"`{reference}` failed: {reply['error']}")
        result: Json = reply["result"]
        return result

    def close(self) -> None:
        """End the child; idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _exchange(self, request: bytes, deadline: float) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # told from its exit status below
            process.stdin.write(request)
            process.stdin.flush()
        if not select.select([process.stdout], [], [], deadline)[0]:
            self.close()
            return {"costly": f"gave no sign for {deadline:g} s"}
        line = process.stdout.readline()
        if line.endswith(b"\n"):
            reply: dict[str, Any] = json.loads(line)
            return reply
        status = process.wait()
        self.close()
        if status in _KILLED:
            return {"costly": "did not end in time"}
        return {"error": f"its worker process ended with status {status}"}

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
            path = os.pathsep.join(filter(None, sys.path))
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**kept, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
            )
        return self._process


shared = Worker()
"""The worker of this process."""
atexit.register(shared.close)


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """The child's side: answer requests until the input closes."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in requests:
        request = json.loads(line)
        try:
            function: Any = resolve(request["call"])
            _arm(request["seconds"])
            reply = {"result": function(**request["arguments"])}
        except (MemoryError, RecursionError) as error:
            reply = {"costly": f"ended by {type(error).__name__}"}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        finally:
            _arm(0)
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def _arm(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds * _WAITING)


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a function prints must not look like a reply
    serve(sys.stdin.buffer, out)
