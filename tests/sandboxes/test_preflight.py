"""What a sandbox must show before it is used, and which is used when any will do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentloop.errors import SandboxError, UnknownName, UsageError
from agentloop.ports import Programs, Sandbox, Sessions
from agentloop.records import Program, SandboxResult
from agentloop.sandboxes import preflight
from agentloop.sandboxes import profile as profiles
from agentloop.sandboxes.attacks import ATTEMPTS
from agentloop.sandboxes.preflight import KEY_ATTEMPTS, Proven, prove
from agentloop.sandboxes.process import ProcessSandbox
from agentloop.sandboxes.profile import Profile, open_profile, open_sandbox
from agentloop.workspace import Workspace

ROOT = Path(__file__).parents[2]
RUNS: list[str] = []


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTLOOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sandboxes"


class Walls:
    """Claims much; `answers` is what an attempt prints in it."""

    claims = frozenset({one.attacks for one in ATTEMPTS})
    runs = RUNS

    def __init__(self, profile: Profile) -> None:
        self.profile = profile

    async def run(self, code: str) -> SandboxResult:
        self.runs.append(code)
        jobs = dict(eval(code.splitlines()[0].removeprefix("JOBS = "))) if "JOBS" in code else {}
        lines = [f'["{name}", "{self.answers}"]' for name in jobs]
        return SandboxResult(stdout="\n".join(lines) or "ran")

    answers = "PermissionError"

    async def execute(self, program: Program) -> SandboxResult:
        return await self.run(program.code)

    @asynccontextmanager
    async def session(self, program: Program) -> Any:
        yield self

    async def close(self) -> None:
        pass


class Leaks(Walls):
    answers = "REACHED"


class Broken(Walls):
    async def run(self, code: str) -> SandboxResult:
        raise SandboxError("no permissions")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    RUNS.clear()
    yield


def made(kind: type[Walls], **limits: Any) -> Any:
    return kind(Profile(backend="bwrap", **limits))


def test_the_key_attempts_are_attempts_that_share_a_run() -> None:
    found = [one for one in ATTEMPTS if one.name in KEY_ATTEMPTS]
    assert len(found) == len(KEY_ATTEMPTS) == 12 and not any(one.alone for one in found)
    assert len({one.group for one in found}) >= 8


def test_it_is_proved_once_until_something_changes(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def twice() -> None:
        sandbox = Proven([made(Walls)])
        assert isinstance(sandbox, Sandbox | Programs | Sessions)
        both = await asyncio.gather(sandbox.run("a"), sandbox.run("b"))
        assert [one.stdout for one in both] == ["ran", "ran"]

    asyncio.run(twice())
    assert len(RUNS) == 3 and len(list(cache.iterdir())) == 1
    asyncio.run(twice())
    assert len(RUNS) == 5  # another process would not prove it again either
    assert asyncio.run(prove(made(Walls, memory_mb=100))) == "" and len(RUNS) == 6
    monkeypatch.setattr("os.getuid", lambda: 12345)
    assert asyncio.run(prove(made(Walls))) == "" and len(RUNS) == 7


@pytest.mark.parametrize(
    ("kind", "says"), [(Leaks, "it does not hold: .*read by path"), (Broken, "no permissions")]
)
def test_it_fails_closed(kind: type[Walls], says: str, cache: Path) -> None:
    sandbox = Proven([made(kind)])
    for _ in range(2):  # from two event loops
        with pytest.raises(SandboxError, match=f"no sandbox holds here: `bwrap`: {says}"):
            asyncio.run(sandbox.execute(Program(code="1")))
    assert "1" not in RUNS and not cache.exists()


def test_what_claims_nothing_is_not_proved() -> None:
    class Modest(Walls):
        claims = frozenset()

    assert "claims nothing" in asyncio.run(prove(made(Modest)))


def test_auto_is_the_first_that_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    order: list[str] = []
    kinds: dict[str, type[Walls]] = {"docker": Broken, "bwrap": Leaks, "landlock": Walls}

    def opened(profile: Profile) -> Any:
        order.append(profile.backend)
        return kinds[profile.backend](profile)

    monkeypatch.setattr(profiles, "bare", opened)
    here = Workspace((ROOT,))
    sandbox = open_sandbox("auto", here)
    assert asyncio.run(sandbox.run("a")).stdout == "ran"
    assert order == ["docker", "bwrap", "landlock"]
    kinds["landlock"] = Broken
    with pytest.raises(SandboxError, match=r"`bwrap`: it does not.*`landlock`: no perm"):
        asyncio.run(open_sandbox("auto", here).run("a"))

    def missing(profile: Profile) -> Any:
        raise UsageError(f"{profile.backend} is not here")

    monkeypatch.setattr(profiles, "bare", missing)
    with pytest.raises(UsageError, match=r"can be used here: .*`bwrap`: bwrap is not here"):
        open_sandbox("auto", here)
    with pytest.raises(UsageError, match="no sandbox for full Python"):
        open_sandbox("auto", Workspace((tmp_path,)))
    with pytest.raises(UnknownName, match="did you mean `auto`"):
        open_sandbox("atuo", Workspace((tmp_path,)))


def test_what_has_walls_is_proved_and_what_has_none_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "prove", None)  # would fail when called
    made = open_profile(Profile(backend="process", unsafe=True, memory_mb=512))
    assert isinstance(made, ProcessSandbox) and asyncio.run(made.run("1")).stdout == "1\n"
