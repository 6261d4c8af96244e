"""What a sandbox costs to start, and what is left of it after many runs.

Each shipped sandbox that this machine can use runs an empty snippet again and again; the bound is
the bare interpreter. Then programs that leave a child behind, some beyond their time, are run four
at a time: afterwards there must be no process, mount, control group, folder or descriptor more.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from agentloop.errors import AgentLoopError
from agentloop.ports import Sandbox
from agentloop.records import Program
from agentloop.sandboxes import cgroups
from agentloop.sandboxes.channel import PYTHON_FLAGS
from agentloop.sandboxes.interpreter import interpreter
from agentloop.sandboxes.profile import bare, open_profile, profiles, read_profile
from agentloop.sandboxes.self_check_programs import running
from agentloop.workspace import Workspace, carried
from benchmarks.harness import Check, Result, main

TARGETS = {"monty": (1.0, 5.0), "bwrap": (60.0, 150.0)}
"""Milliseconds at most: the median and the 95th percentile."""
AT_ONCE = 4


def measure(quick: bool) -> Result:
    """Milliseconds of a run by sandbox, then what 500 runs leave of `bwrap` and `landlock`."""
    times, runs = (30, 60) if quick else (200, 500)
    rows: list[dict[str, Any]] = [{"who": "bare interpreter", **_shown(_bare(times))}]
    checks: list[Check] = []
    for name, path in profiles(Workspace((carried(),))).items():
        try:
            took = asyncio.run(_start(open_profile(read_profile(path)), times))
        except AgentLoopError as error:
            rows.append({"who": name, "skipped": str(error)})
            continue
        rows.append({"who": name, **_shown(took)})
        for figure, target in zip(("p50_ms", "p95_ms"), TARGETS.get(name, ()), strict=False):
            checks.append(Check(f"{name} {figure}", rows[-1][figure], target, at_most=True))
        if name in ("bwrap", "landlock"):
            left = asyncio.run(_left(path, runs))
            rows.append({"who": f"{name}, {runs} runs", **left})
            checks.append(Check(f"left by {name}", sum(left.values()), 0, at_most=True))
    return Result(rows, checks, ("pydantic-monty",))


def _bare(times: int) -> list[float]:
    command = [str(interpreter().executable), *PYTHON_FLAGS, "-c", "pass"]
    took = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run(command, env={}, check=True)
        took.append(time.perf_counter() - began)
    return took


async def _start(sandbox: Sandbox, times: int) -> list[float]:
    """Seconds of each run, after one that proves the sandbox and loads what is loaded once."""
    took = []
    try:
        await sandbox.run("pass")
        for _ in range(times):
            began = time.perf_counter()
            await sandbox.run("pass")
            took.append(time.perf_counter() - began)
    finally:
        await sandbox.close()
    return took


def _shown(took: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(took, n=20)
    return {"p50_ms": round(cuts[9] * 1e3, 2), "p95_ms": round(cuts[18] * 1e3, 2)}


async def _left(path: Path, runs: int) -> dict[str, int]:
    """What is more than before."""
    name = secrets.token_hex(7)
    code = (
        f"import ctypes, os, sys, time\nctypes.CDLL(None).prctl(15, {name.encode()!r}, 0, 0, 0)\n"
        "if os.fork() == 0 or sys.argv[1] == '0': time.sleep(30)"
    )
    sandbox = bare(read_profile(path).model_copy(update={"seconds": 1.0}))
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with turns:
            await sandbox.execute(Program(code=code, arguments=(str(number % 20),)))

    usual = tempfile.tempdir, cgroups.PREFIX
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # code may run as another user
        tempfile.tempdir, cgroups.PREFIX = folder, f"agentloop-{name}-"
        try:
            await one(1)
            before = _state(name, folder)
            await asyncio.gather(*map(one, range(runs - 1)))
            after = _state(name, folder)
        finally:
            tempfile.tempdir, cgroups.PREFIX = usual
            await sandbox.close()
    return {what: after[what] - before[what] for what in before}


def _state(name: str, folder: str) -> dict[str, int]:
    return {
        "processes": running(name),
        "mounts": Path("/proc/self/mountinfo").read_text().count("\n"),
        "groups": len(list(cgroups.ROOT.rglob(f"agentloop-{name}-*"))),
        "folders": len(os.listdir(folder)),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


if __name__ == "__main__":
    main("sandboxes", measure)
