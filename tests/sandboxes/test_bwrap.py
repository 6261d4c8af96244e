"""The sandbox of namespaces: its limits together, its controls one by one, and what it leaves."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from agentloop.errors import MissingDependency, SandboxError, UsageError
from agentloop.records import SandboxResult
from agentloop.sandboxes import bwrap, cgroups
from agentloop.sandboxes.attacks import ATTEMPTS, Host, attack
from agentloop.sandboxes.bwrap import CONTROLS, BwrapSandbox
from agentloop.sandboxes.profile import Profile, read_profile

PROFILE = read_profile(Path(__file__).parents[2] / "sandboxes/bwrap/profile.yaml")
needs_bwrap = pytest.mark.skipif(not shutil.which("bwrap"), reason="bwrap is missing")


def run(code: str, *without: str, **limits: Any) -> SandboxResult:
    profile = Profile(**PROFILE.model_dump() | limits)
    return asyncio.run(BwrapSandbox(profile, without).run(code))


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    bwrap.tools.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name, path: None if name == "bwrap" else name)
    with pytest.raises(MissingDependency, match="apt-get install bubblewrap"):
        BwrapSandbox(PROFILE)
    monkeypatch.setattr(shutil, "which", lambda name, path: f"/bin/{name}")
    with pytest.raises(UsageError, match="needs a filter"):
        BwrapSandbox(Profile(backend="bwrap"))
    with pytest.raises(UsageError, match="unknown controls"):
        BwrapSandbox(PROFILE, ["secomp"])
    bwrap.tools.cache_clear()


@pytest.mark.integration
@needs_bwrap
def test_code_sees_an_interpreter_and_an_empty_disk() -> None:
    code = "import os\n[os.getuid(), os.listdir(), os.listdir('/tmp'), os.path.exists('/etc')]"
    assert run(code).stdout == "[65534, [], [], False]\n"
    assert run("import socket\n[n for _, n in socket.if_nameindex()]").error.startswith("OSError")
    assert run("import subprocess\nsubprocess.run(['sh'])").error.startswith("FileNotFoundError")
    assert run("import sys; sys.path.append([p for p in sys.path if p.endswith('3.11')][0] + "
               "'/site-packages')\nimport pip").error.startswith("ModuleNotFoundError")  # fmt: skip
    code = "import threading, multiprocessing as m\nm.Lock()\nt = threading.Thread(target=print)"
    assert run(code + "\nt.start(); t.join()").returncode == 0


@pytest.mark.integration
@needs_bwrap
@pytest.mark.skipif(os.geteuid() != 0, reason="control groups need root")
def test_limits_hold_for_all_processes_together() -> None:
    fill = "import os, time\nfor _ in range(4):\n    if not os.fork():\n        "
    result = run(fill + "x = b'x' * 50 * 2**20; time.sleep(9)\nos.wait()", memory_mb=96)
    assert result.error == "" and result.returncode == 0  # the first that is killed was waited for
    own = run("x = [b'x' * 2**20 * n for n in range(2, 40)]", "rlimits", memory_mb=64)
    assert own.error == "MemoryError: out of memory"
    spin = "import os\nfor _ in range(3): os.fork()\nwhile os.times().user < 0.1: pass"
    began = time.monotonic()
    assert run(spin + "\nos.wait", cpu=0.4).error == ""
    assert time.monotonic() - began > 1.2  # eight times 0.1 s at 0.4 of a processor


FLIPS = {
    "environment": "own environment", "seccomp": "be traced", "readonly": "write into the root",
    "cgroup": "memory of several processes", "rlimits": "core dumps", "disk": "many files",
    "capabilities": "capabilities", "network": "unix socket without a path", "user": "core pattern",
}  # fmt: skip
"""An attempt that gets through when one control is left out."""


@pytest.mark.integration
@needs_bwrap
@pytest.mark.skipif(os.geteuid() != 0, reason="control groups and other users need root")
@pytest.mark.parametrize("control", FLIPS)
def test_each_control_holds_something_back(control: str) -> None:
    limits = {"seconds": 6.0, "memory_mb": 128, "disk_mb": 32}
    profile = Profile(**PROFILE.model_dump() | limits)
    tried = [one for one in ATTEMPTS if one.name == FLIPS[control]]
    with Host() as host:
        for without, found in (((), 0), ((control,), 1)):
            sandbox = BwrapSandbox(profile, without)
            reached = asyncio.run(attack(sandbox, tried, host, profile.model_dump(mode="json")))
            assert len(reached) == found, without


@pytest.mark.integration
@needs_bwrap
def test_new_users_are_held_back_twice() -> None:
    assert FLIPS.keys() == CONTROLS - {"userns"}
    nested = "import ctypes\nctypes.CDLL(None).unshare(0x10000000)"
    assert run(nested, "seccomp").stdout == "-1\n" == run(nested, "userns").stdout
    assert run(nested, "seccomp", "userns").stdout == "0\n"


@pytest.mark.integration
@needs_bwrap
def test_a_wall_that_cannot_be_raised_is_the_sandboxs_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for change in (
        "false\n",
        "shift 3\nexec /nonexistent\n",
        "shift 3\nexec env bwrap --nonsense\n",
    ):
        monkeypatch.setattr(bwrap, "STAGE", change)
        with pytest.raises(SandboxError, match="did not start"):
            run("1")


@pytest.mark.integration
@needs_bwrap
def test_runs_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "PREFIX", f"agentloop-{os.getpid()}-")

    def state() -> tuple[int, ...]:
        groups = list(Path("/sys/fs/cgroup").rglob(f"agentloop-{os.getpid()}-*"))
        mounts = Path("/proc/self/mountinfo").read_text().count("\n")
        return len(groups), mounts, len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        sandbox = BwrapSandbox(Profile(**PROFILE.model_dump() | {"seconds": 0.3}))
        for _ in range(3):
            await asyncio.gather(*(sandbox.run(f"print({n})") for n in range(3)))
        assert (await sandbox.run("import os\nos.fork()\nwhile True: pass")).timed_out

    before = state()
    asyncio.run(main())
    assert state() == before
