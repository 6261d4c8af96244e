"""No attempt escapes from a sandbox that claims the property, and each of its controls matters."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from docker_engine import needs_engine

from agentloop.sandboxes.attacks import ATTEMPTS, Attempt, Host, Reached, attack
from agentloop.sandboxes.bwrap import BwrapSandbox
from agentloop.sandboxes.docker import DockerSandbox
from agentloop.sandboxes.profile import Profile, read_profile

pytestmark = pytest.mark.integration
LIMITS = {"seconds": 3, "memory_mb": 128, "disk_mb": 16, "pids": 32}
needs_bwrap = pytest.mark.skipif(not shutil.which("bwrap"), reason="bwrap is missing")
CLASSES: dict[str, Any] = {"bwrap": BwrapSandbox, "docker": DockerSandbox}
BACKENDS = [
    pytest.param("bwrap", marks=needs_bwrap),
    pytest.param("docker", marks=needs_engine),
]
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_escapes(backend: str) -> None:
    claimed = [one for one in ATTEMPTS if one.attacks in CLASSES[backend].claims]
    assert len(claimed) == len(ATTEMPTS)
    assert [str(one) for one in reached(backend, [], claimed)] == []


@pytest.mark.parametrize(
    ("backend", "control", "covers", "falls"),
    [
        pytest.param(*row, marks=needs_bwrap if row[0] == "bwrap" else needs_engine)
        for row in TEETH
    ],
)
def test_without_a_control_an_attempt_gets_through(
    backend: str, control: str, covers: list[str], falls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another control covers the same, it is left out on both sides of the comparison."""
    monkeypatch.setattr("agentloop.sandboxes.docker.WARM", 0)
    tried = [one for one in ATTEMPTS if one.attacks == falls]
    with_it = {one.attempt for one in reached(backend, covers, tried)} if covers else set()
    without_it = {one.attempt for one in reached(backend, [control, *covers], tried)}
    assert without_it > with_it, sorted(one.name for one in with_it)
