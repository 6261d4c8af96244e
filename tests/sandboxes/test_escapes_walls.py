"""No attempt escapes from a sandbox that claims the property, and each of its controls matters."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from docker_engine import needs_engine

from agentloop.sandboxes import landlock
from agentloop.sandboxes.attacks import ATTEMPTS, Attempt, Host, Reached, attack
from agentloop.sandboxes.bwrap import BwrapSandbox
from agentloop.sandboxes.docker import DockerSandbox
from agentloop.sandboxes.landlock import CONCEDES, LandlockSandbox
from agentloop.sandboxes.landlocked import ABI
from agentloop.sandboxes.profile import Profile, read_profile

pytestmark = pytest.mark.integration
LIMITS = {"seconds": 3, "memory_mb": 128, "disk_mb": 16, "pids": 32}
needs_bwrap = pytest.mark.skipif(not shutil.which("bwrap"), reason="bwrap is missing")
needs_landlock = pytest.mark.skipif(
    sys.platform != "linux"
    or os.geteuid() != 0
    or ctypes.CDLL(None).syscall(444, None, 0, 1) < ABI,
    reason=f"Landlock {ABI} and root, who can limit all processes together",
)
NEEDS = {"bwrap": needs_bwrap, "docker": needs_engine, "landlock": needs_landlock}
CLASSES: dict[str, Any] = {
    "bwrap": BwrapSandbox, "docker": DockerSandbox, "landlock": LandlockSandbox
}  # fmt: skip
LINES = {
    "rules": ('check(libc.syscall(RESTRICT, rules, 0), "landlock")', "pass"),
    "filter": ('check(libc.prctl(22, 2, program, 0, 0), "seccomp")', "pass"),
    "capabilities": ("user(libc, int(uid))", "pass"),
    "TCP": ("ALL_FILES, 3, 3)", "ALL_FILES, 0, 3)"),
    "signals": ("ALL_FILES, 3, 3)", "ALL_FILES, 3, 1)"),
    "abstract sockets": ("ALL_FILES, 3, 3)", "ALL_FILES, 3, 2)"),
}
"""Controls of `landlock` that nobody can leave out: a line of its launcher, and one without it."""
TEETH = [
    # backend, the control, what else covers the same, the property that must fall without them
    ("bwrap", "environment", [], "environment"),
    ("bwrap", "seccomp", [], "syscalls"),
    ("bwrap", "userns", ["seccomp"], "namespaces"),
    ("bwrap", "readonly", [], "devices"),
    ("bwrap", "capabilities", [], "privileges"),
    ("bwrap", "network", [], "network"),
    ("bwrap", "user", [], "devices"),
    ("bwrap", "rlimits", [], "privileges"),
    ("bwrap", "cgroup", ["rlimits"], "memory"),
    ("bwrap", "cgroup", ["rlimits"], "pids"),
    ("bwrap", "disk", ["rlimits", "cgroup"], "disk"),
    ("landlock", "rules", [], "files"),
    ("landlock", "filter", [], "syscalls"),
    ("landlock", "user", [], "privileges"),
    ("landlock", "rlimits", [], "privileges"),
    ("landlock", "capabilities", ["user", "filter"], "privileges"),
    ("landlock", "environment", [], "environment"),
    ("landlock", "cgroup", ["rlimits"], "memory"),
    ("landlock", "cgroup", ["rlimits"], "pids"),
    ("landlock", "TCP", ["filter"], "network"),
    ("landlock", "abstract sockets", ["filter"], "network"),
    ("landlock", "signals", ["user"], "processes"),
    ("docker", "memory", ["rlimits"], "memory"),
    ("docker", "pid limit", [], "pids"),
    ("docker", "disk", ["rlimits"], "disk"),
    ("docker", "network", [], "network"),
    ("docker", "ipc", [], "ipc"),
    ("docker", "pids", [], "processes"),
    ("docker", "capabilities", [], "privileges"),
    ("docker", "readonly", ["user"], "files"),
    ("docker", "user", [], "privileges"),
    ("docker", "rlimits", [], "privileges"),
    ("docker", "seccomp", [], "syscalls"),
    ("docker", "new privileges", [], "privileges"),
    ("docker", "files", ["user"], "files"),
    ("docker", "environment", [], "environment"),
]


def reached(backend: str, without: list[str], attempts: list[Attempt]) -> list[Reached]:
    root = Path(__file__).parents[2] / "sandboxes"
    shipped = read_profile(root / backend / "profile.yaml")
    profile = Profile(**shipped.model_dump() | LIMITS)

    async def main() -> list[Reached]:
        sandbox = CLASSES[backend](profile, without)
        try:
            return await attack(sandbox, attempts, host, profile.model_dump(mode="json"))
        finally:
            await sandbox.close()

    with Host() as host:
        return asyncio.run(main())


@pytest.mark.parametrize("backend", [pytest.param(one, marks=NEEDS[one]) for one in CLASSES])
def test_nothing_escapes(backend: str) -> None:
    """`landlock` has no disk of its own, and concedes one attempt of what it claims."""
    claims, conceded = CLASSES[backend].claims, CONCEDES if backend == "landlock" else set()
    claimed = [one for one in ATTEMPTS if one.attacks in claims]
    assert {one.attacks for one in ATTEMPTS} - claims == ({"disk"} if conceded else set())
    assert {one.attempt.name for one in reached(backend, [], claimed)} == conceded


@pytest.mark.parametrize(
    ("backend", "control", "covers", "falls"),
    [pytest.param(*row, marks=NEEDS[row[0]]) for row in TEETH],
)
def test_without_a_control_an_attempt_gets_through(
    backend: str, control: str, covers: list[str], falls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another control covers the same, it is left out on both sides of the comparison."""
    monkeypatch.setattr("agentloop.sandboxes.docker.WARM", 0)
    tried = [one for one in ATTEMPTS if one.attacks == falls]
    usual = landlock.SOURCE

    def through(without: list[str]) -> set[Attempt]:
        source = usual
        for line in (LINES[one] for one in without if backend == "landlock" and one in LINES):
            assert line[0] in source
            source = source.replace(*line)
        monkeypatch.setattr(landlock, "SOURCE", source)
        known = [one for one in without if backend != "landlock" or one not in LINES]
        return {one.attempt for one in reached(backend, known, tried)}

    with_it = through(covers) if covers else set()
    without_it = through([control, *covers])
    assert without_it > with_it, sorted(one.name for one in with_it)
