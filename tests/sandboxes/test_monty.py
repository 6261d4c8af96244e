"""The monty sandbox: what code gets back, what it cannot do, what happens when a worker dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentloop.errors import SandboxError
from agentloop.ports import Sandbox
from agentloop.records import SandboxResult
from agentloop.sandboxes.monty import WORKERS, MontySandbox
from agentloop.sandboxes.profile import Profile, open_sandbox
from agentloop.sandboxes.self_check import self_check
from agentloop.workspace import Workspace

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[MontySandbox]:
    made = MontySandbox(Profile(backend="monty", seconds=0.3, output_bytes=4096))
    yield made
    asyncio.run(made.close())


def workers() -> set[int]:
    """Live child processes of this one that are monty workers."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, parent = rest.split()[:2]
        if name.startswith("monty") and int(parent) == os.getpid() and state != "Z":
            found.add(int(stat.parent.name))
    return found


@pytest.mark.parametrize(
    ("code", "stdout", "error"),
    [
        ("print(1 + 1)", "2\n", ""),
        ("1 + 1", "2", ""),
        ("x = 2\n[x, 'a']", "[2, 'a']", ""),
        ("print('p')\n5", "p\n", ""),
        ("x = 1", "", ""),
        ("None", "", ""),
        ("print('a')\n1/0", "a\n", "ZeroDivisionError: division by zero"),
        ("raise ValueError('a\\nb')", "", "ValueError: a b"),
        ("import math\nmath.gcd(12, 18)", "6", ""),
        ("'žluť 🎉'", "'žluť 🎉'", ""),
        ("", "", ""),
    ],
)
def test_code_gives(sandbox: MontySandbox, code: str, stdout: str, error: str) -> None:
    assert asyncio.run(sandbox.run(code)) == SandboxResult(stdout=stdout, error=error)


@pytest.mark.parametrize("code", ["def f(", "\x00", "'\ud800'", "x = (", "import numpy"])
def test_bad_code_is_the_codes_own_error(sandbox: MontySandbox, code: str) -> None:
    result = asyncio.run(sandbox.run(code))
    assert result.error and not result.timed_out


def test_limits(sandbox: MontySandbox) -> None:
    loop = asyncio.run(sandbox.run("print('a')\nwhile True: pass"))
    assert loop.timed_out and loop.stdout == "a\n" and "limit" in loop.error
    memory = asyncio.run(sandbox.run("x = 'a' * 10**10"))
    assert memory.error.startswith("MemoryError") and not memory.timed_out
    flood = asyncio.run(sandbox.run("print('start')\nfor i in range(3000): print(i)\nprint('end')"))
    assert flood.truncated and len(flood.stdout) < 4200 and flood.error == ""
    assert flood.stdout.startswith("start\n0\n1\n") and flood.stdout.endswith("2999\nend\n")
    shared = "a = [0] * 400\nb = [a] * 400\nc = [b] * 400\nc"  # 64 million elements when shown
    started = time.monotonic()
    shown = asyncio.run(sandbox.run(shared))
    assert shown.error or "[timeout]" in shown.stdout  # the interpreter itself gives up showing it
    assert time.monotonic() - started < 30


def test_the_same_code_gives_the_same_output_and_never_waits(sandbox: MontySandbox) -> None:
    code = "import random, time\ntime.sleep(100)\nrandom.random()"
    assert asyncio.run(sandbox.run(code)) == asyncio.run(sandbox.run(code))


def test_it_keeps_its_promises() -> None:
    sandbox = MontySandbox(Profile(backend="monty", seconds=0.3))
    assert isinstance(sandbox, Sandbox)
    assert asyncio.run(self_check(sandbox)) == []
    asyncio.run(sandbox.close())


def test_the_self_check_sees_an_open_door() -> None:
    class Open:
        """Plain Python in a process of its own: everything is allowed, and it has no limits."""

        async def run(self, code: str) -> SandboxResult:
            if "while True" in code or "10**11" in code or "return f()" in code:
                return SandboxResult(stdout="flood" * 10**6 if "print" in code else "")
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, encoding="utf-8"
            )
            error = (done.stderr.strip().splitlines() or [""])[-1]
            return SandboxResult(stdout=done.stdout, error=error)

        async def close(self) -> None:
            return None

    found = " | ".join(asyncio.run(self_check(Open())))
    for problem in (
        "reads a host file", "writes a host file", "removes a host file", "opens a socket",
        "reads the environment", "reads the host's PATH", "starts a process", "endless loop",
        "memory bomb", "recursion", "bytes of output",
    ):  # fmt: skip
        assert problem in found, problem

    class Sticky(MontySandbox):
        async def run(self, code: str) -> SandboxResult:
            global_state.append(code)
            return SandboxResult(stdout="\n".join(global_state))

    global_state: list[str] = []
    sticky = Sticky(Profile(backend="monty"))
    assert "keeps a variable between runs" in asyncio.run(self_check(sticky))


def test_many_at_once_on_few_workers() -> None:
    sandbox = MontySandbox(Profile(backend="monty"))
    before = workers()

    async def main() -> list[SandboxResult]:
        return await asyncio.gather(*(sandbox.run(f"print({n} * 2)") for n in range(64)))

    assert [result.stdout for result in asyncio.run(main())] == [f"{2 * n}\n" for n in range(64)]
    if sys.platform == "linux":
        assert 1 <= len(workers() - before) <= WORKERS
    asyncio.run(sandbox.close())
    asyncio.run(sandbox.close())
    assert workers() <= before
    assert asyncio.run(sandbox.run("5")).stdout == "5"  # a closed one starts again
    asyncio.run(sandbox.close())


@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker in /proc")
def test_a_killed_worker_is_a_sandbox_error_and_is_replaced() -> None:
    sandbox = MontySandbox(Profile(backend="monty", seconds=5))
    before = workers()

    async def main() -> None:
        run = asyncio.create_task(sandbox.run("while True: pass"))
        while not (own := workers() - before):
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        for worker in own:
            os.kill(worker, signal.SIGKILL)
        with pytest.raises(SandboxError, match="died"):
            await run
        assert (await sandbox.run("print(1)")).stdout == "1\n"
        await sandbox.close()

    asyncio.run(main())


def test_a_missing_interpreter_is_a_sandbox_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONTY_BIN", "/nonexistent/monty")
    with pytest.raises(SandboxError, match="did not start"):
        asyncio.run(MontySandbox(Profile(backend="monty")).run("1"))


def test_a_process_that_never_closes_it_still_ends_well() -> None:
    code = (
        "import asyncio\n"
        "from agentloop.sandboxes.monty import MontySandbox\n"
        "from agentloop.sandboxes.profile import Profile\n"
        "print(asyncio.run(MontySandbox(Profile(backend='monty')).run('1 + 1')).stdout)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


def test_the_shipped_profile_opens() -> None:
    sandbox = open_sandbox("monty", Workspace((ROOT,)))
    assert isinstance(sandbox, MontySandbox) and sandbox.profile.seconds == 2
