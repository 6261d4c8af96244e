"""The escape attempts: that they are told apart, can succeed, and leave the host as it was."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from open_sandbox import HAS_BWRAP, OpenSandbox

from agentloop.errors import SandboxError, UsageError
from agentloop.records import SandboxResult
from agentloop.sandboxes.attacks import ATTEMPTS, Attempt, Host, Reached, attack
from agentloop.sandboxes.attacks.limits import OUTPUT, RESOURCES, SURVIVORS
from agentloop.sandboxes.attacks.refusals import WISHES
from agentloop.sandboxes.profile import read_profile

LIMITS = {"seconds": 0.5, "memory_mb": 64, "disk_mb": 32, "pids": 64, "output_bytes": 1000}
SHARED = [attempt for attempt in ATTEMPTS if not attempt.alone]


class Answers:
    """A sandbox that says the same each time."""

    def __init__(self, *stdout: str, error: str = "", wait: float = 0.0) -> None:
        self.stdout, self.error, self.wait = "".join(stdout), error, wait

    async def run(self, code: str) -> SandboxResult:
        await asyncio.sleep(self.wait)
        if self.stdout == "broken":
            raise SandboxError("broken")
        return SandboxResult(stdout=self.stdout, error=self.error)

    async def close(self) -> None:
        pass


TRIES = 5


def found(sandbox: Answers | OpenSandbox, *attempts: Attempt, together: int = 40) -> list[Reached]:
    with Host() as host:
        return asyncio.run(attack(sandbox, attempts, host, LIMITS, together=together))


def test_there_are_enough_and_each_is_a_program_of_its_own() -> None:
    assert len(ATTEMPTS) >= 200
    twice = [name for name, times in Counter(a.name for a in ATTEMPTS).items() if times > 1]
    assert not twice
    for attempt in ATTEMPTS:
        assert attempt.attacks and attempt.code.strip(), attempt.name
        compile(attempt.source({}), attempt.name, "exec")
    groups = Counter(attempt.group for attempt in ATTEMPTS)
    assert min(groups.values()) >= 7 and len(groups) == 14


@pytest.mark.parametrize("wish", WISHES)
def test_a_profile_cannot_ask_for_a_hole(tmp_path: Path, wish: str) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(f"backend: monty\n{WISHES[wish]}\n")
    with pytest.raises(UsageError) as refused:
        read_profile(path)
    assert len(str(refused.value).splitlines()) == 1


def test_a_result_that_breaks_a_promise_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentloop.sandboxes.attacks.run.LATE", 0.2)
    alone = OUTPUT[0]
    cases = [
        (Answers("fine"), ""),
        (Answers("x" * 3000), "3000 bytes of output are kept"),
        (Answers("\udcff"), "its text is no text"),
        (Answers("", error="a\x1b[2Jb"), "its error steers the terminal"),
        (Answers("broken"), "the sandbox is blamed: broken"),
        (Answers("", wait=0.8), "it came back after 0.8 s"),
    ]
    for sandbox, evidence in cases:
        reached = found(sandbox, alone)
        assert (evidence in str(reached[0])) if evidence else not reached, evidence


def test_attempts_that_were_not_made_are_no_proof() -> None:
    with pytest.raises(SandboxError, match="2 attempts were not made, from `read by path` on"):
        found(Answers("nothing"), *SHARED[:2])


def test_a_secret_of_the_host_is_told_from_other_text() -> None:
    with Host() as host:
        secret = Path(str(host.hints["secret"])).read_text()
        assert host.shows(f"x{secret}y") and not host.shows(str(host.hints))
        assert host.seen() == set()


def test_the_dead_are_no_survivors() -> None:
    """Nobody has buried the first yet; of the second only its first thread has ended."""
    code = """
import ctypes, os, sys, threading, time
ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0)
if sys.argv[2] == "thread":
    threading.Thread(target=time.sleep, args=(60,)).start()
    print("up", flush=True)
    ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)
print("up", flush=True)
"""
    with Host() as host:
        for how, left in (("dead", 0), ("thread", 1)):
            name = f"{host.token[:8]}{how}"
            command = [sys.executable, "-c", code, name, how]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                assert process.stdout and process.stdout.readline() == b"up\n"
                stat = Path(f"/proc/{process.pid}/stat")
                while stat.read_text().rpartition(")")[2].split()[0] != "Z":
                    time.sleep(0.01)
                assert f"({name})" in stat.read_text()
                assert host.survivors(name) == left


def test_the_host_is_as_it_was() -> None:
    libc = ctypes.CDLL(None)

    def state() -> list[object]:
        return [os.listdir("/proc/self/fd"), dict(os.environ), threading.active_count()]

    before = state()
    with Host() as host:
        assert state() != before and "AGENTLOOP_CANARY" in os.environ
        key, files = host.hints["key"], [f"/proc/{host.hints['pid']}"]
        files += [str(host.hints[name]) for name in ("secret", "unix", "shared")]
        assert all(map(os.path.exists, files)) and libc.shmget(key, 0, 0) >= 0
    assert state() == before and not any(map(os.path.exists, files))
    assert libc.shmget(key, 0, 0) == libc.msgget(key, 0) == libc.semget(key, 0, 0) == -1


@pytest.mark.integration
@pytest.mark.skipif(not HAS_BWRAP, reason="bwrap is missing")
def test_each_attempt_succeeds_where_nothing_holds_it_back() -> None:
    """A caught exception counts as contained: this is what shows that it was the wall's doing.
    The kernel of this machine may lack what an attempt needs (modules, KVM, a container engine)."""
    root = os.getuid() == 0
    got = {reached.attempt for reached in found(OpenSandbox(), *SHARED)}
    assert len(got) >= (150 if root else 80), [a.name for a in SHARED if a not in got]
    missed = Counter(attempt.group for attempt in SHARED if attempt not in got)
    assert not root or not missed["write"] + missed["processes"] + missed["namespaces"]


@pytest.mark.integration
@pytest.mark.skipif(not HAS_BWRAP, reason="bwrap is missing")
def test_limits_are_exceeded_where_there_are_none() -> None:
    """What takes processors fails beside other attempts, and tests, that do: so it is tried again
    by itself. How long a run may take is no limit here: a busy machine takes its time."""
    tried = [attempt for attempt in RESOURCES if attempt.attacks != "time"]
    open_to_all = OpenSandbox(seconds=120)
    got = {reached.attempt for reached in found(open_to_all, *tried)}
    missed = [attempt for attempt in tried if attempt not in got] * TRIES
    while missed and (again := missed.pop()):
        if again not in got:
            got |= {reached.attempt for reached in found(open_to_all, again)}
    # Pipes are bounded by the kernel for users without rights.
    assert len(got) >= len(tried) - 2, [a.name for a in tried if a not in got]
    outlive = [attempt for attempt in SURVIVORS if "out of time" not in attempt.name]
    got = {reached.attempt for reached in found(open_to_all, *outlive)}
    assert got == set(outlive)
