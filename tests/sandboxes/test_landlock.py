"""The sandbox of rules: what it holds back, what it cannot, and that half a wall is none."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from agentloop.errors import SandboxError, UsageError
from agentloop.records import SandboxResult
from agentloop.sandboxes import landlock
from agentloop.sandboxes.attacks import ATTEMPTS, Host, attack
from agentloop.sandboxes.landlock import CONCEDES, LandlockSandbox
from agentloop.sandboxes.landlocked import ABI
from agentloop.sandboxes.profile import Profile, read_profile

PROFILE = read_profile(Path(__file__).parents[2] / "sandboxes/landlock/profile.yaml")
HERE = sys.platform == "linux" and ctypes.CDLL(None).syscall(444, None, 0, 1) >= ABI
pytestmark = pytest.mark.integration
needs_landlock = pytest.mark.skipif(not HERE, reason=f"this kernel has no Landlock {ABI}")


def run(code: str, *without: str, **limits: Any) -> SandboxResult:
    profile = Profile(**PROFILE.model_dump() | limits)
    return asyncio.run(LandlockSandbox(profile, without).run(code))


def test_a_profile_needs_a_filter() -> None:
    with pytest.raises(UsageError, match="needs a filter"):
        LandlockSandbox(Profile(backend="landlock"))
    with pytest.raises(UsageError, match="unknown controls"):
        LandlockSandbox(PROFILE, ["secomp"])


@needs_landlock
def test_it_holds_back_what_it_can(tmp_path: Path) -> None:
    (tmp_path / "host").write_text("host")
    tmp_path.chmod(0o777)
    for code in (
        f"open('{tmp_path}/host').read()", f"open('{tmp_path}/new', 'w')",
        "open('/proc/1/environ').read()", f"import os\nos.chmod('{tmp_path}/host', 0)",
        f"import os\nos.setpriority(0, {os.getpid()}, 5)", "import os\nos.setsid()",
        f"import resource\nresource.prlimit({os.getpid()}, 4, (0, 0))",
        f"import os\nos.kill({os.getpid()}, 0)", "import socket\nsocket.socket()",
    ):  # fmt: skip
        assert run(code).error.startswith(("PermissionError", "OSError")), code
    assert run("open('kept', 'w').write('a')\nopen('kept').read()").stdout == "'a'\n"
    if os.geteuid() == 0:
        assert run("import os\nos.getuid() in range(61000, 62000)").stdout == "True\n"
        assert run("import os\nos.getuid()", "user").stdout == "0\n"


@needs_landlock
@pytest.mark.parametrize("change", [("ABI = 6", "ABI = 99"), ('"landlock")', "")])
def test_half_a_wall_is_none(monkeypatch: pytest.MonkeyPatch, change: tuple[str, str]) -> None:
    broken = landlock.SOURCE.replace(*change, 1)
    assert broken != landlock.SOURCE
    monkeypatch.setattr(landlock, "SOURCE", broken)
    with pytest.raises(SandboxError, match="did not start"):
        run("1")


@needs_landlock
@pytest.mark.skipif(os.geteuid() != 0, reason="limits of all processes together need root")
def test_attempts_of_the_kinds_it_claims_fail() -> None:
    """What it does not claim, and what it concedes, gets through, as is documented. Those that need
    a run of their own are in `test_escapes_walls.py`."""
    tried = [one for one in ATTEMPTS if not one.alone]
    fields = {"seconds", "memory_mb", "disk_mb", "pids", "output_bytes"}
    sandbox = LandlockSandbox(Profile(**PROFILE.model_dump() | {"seconds": 60}))
    with Host() as host:
        found = asyncio.run(attack(sandbox, tried, host, PROFILE.model_dump(include=fields)))
    assert {one.attempt.name for one in found} == CONCEDES
