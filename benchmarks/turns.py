"""Processes that take turns step by step, so that a machine's moods are the same for all of them.

In: commands that print one JSON object when they are ready and after each step, that begin a step
when they are sent a line, and that print one object with everything at the end. Out: these last
objects. Peers compete: after a trial only the fastest of them goes on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from benchmarks.harness import cores

Line = dict[str, Any]


class Turns:
    """One command, on the client's core; `said` holds its objects since it was ready."""

    def __init__(self, name: str, command: Sequence[str], timeout: float) -> None:
        self.name, self.said = name, list[Line]()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            preexec_fn=_pin, start_new_session=True,
        )  # fmt: skip
        self._timer = threading.Timer(timeout, self._kill)
        self._timer.start()

    def read(self) -> Line:
        """Its next object. Raises `RuntimeError` with its last words when it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._kill()
            self._errors.seek(0)
            last = self._errors.read()[-2000:].decode(errors="replace")
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}: {last}")
        found: Line = json.loads(line)
        return found

    def step(self) -> None:
        """Let it make one step, and wait for its end."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.said.append(self.read())

    def close(self) -> None:
        """End it and what it started; idempotent."""
        self._timer.cancel()
        self._kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]

    def _kill(self) -> None:
        with suppress(ProcessLookupError):  # its group, whose leader it is
            os.killpg(self._process.pid, signal.SIGKILL)


def _pin() -> None:
    if sys.platform == "linux":
        os.sched_setaffinity(0, {cores()[1]})


def compete(
    ours: Sequence[str], peers: Mapping[str, Sequence[str]], *, steps: int, trial: int,
    cost: Callable[[Sequence[Line]], float], timeout: float,
) -> tuple[Line, str, Line, dict[str, list[Line]]]:  # fmt: skip
    """Run `steps` steps of each in turn. Gives what ours said at its end, the name of the peer
    whose first `trial` steps have the least `cost`, what it said, and all that left the race said.

    Raises `RuntimeError` when a command fails or takes longer than `timeout` seconds; nothing that
    it started is left.
    """
    with ExitStack() as stack:

        def start(name: str, command: Sequence[str]) -> Turns:
            one = Turns(name, command, timeout)
            stack.callback(one.close)
            one.read()  # ready: the next may start
            return one

        mine = start("ours", ours)
        racing = [start(name, command) for name, command in peers.items()]
        out: dict[str, list[Line]] = {}
        for at in range(steps):
            for one in (mine, *racing):
                one.step()
            if at + 1 == trial:
                best = min(racing, key=lambda one: cost(one.said))
                for one in racing:
                    if one is not best:
                        out[one.name] = one.said
                        one.close()
                racing = [best]
        return mine.read(), racing[0].name, racing[0].read(), out
