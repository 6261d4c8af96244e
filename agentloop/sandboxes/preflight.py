"""A sandbox is used only after it has shown, on this machine, that its walls stand.

In: sandboxes in the order in which they are wanted. Out: the first that holds, proved by twelve key
escape attempts before its first run. It fails closed: where none holds, nothing runs. What was
proved is remembered until something that it rests on changes: the kernel and its start, the tools,
the profile, this package's code, the user.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

from agentloop.errors import SandboxError
from agentloop.ports import Session
from agentloop.records import Program, SandboxResult
from agentloop.sandboxes.profile import Profile
from agentloop.workspace import model_cache

KEY_ATTEMPTS = frozenset({
    "read by path", "the host's passwords", "write a new host file", "block device",
    "environment of process 1", "memory of a host process by file", "signal a host process",
    "TCP to loopback", "unix socket without a path", "socket to the virtual machine's host",
    "new users", "no filter of system calls",
})  # fmt: skip
"""One of each kind of wall."""
PROVING_SECONDS = 60.0
"""For all of them in one run, whatever the profile gives a run."""


class Full(Protocol):
    """A sandbox of full Python that says what it claims (`attacks.Attempt.attacks`)."""

    profile: Profile
    claims: frozenset[str]

    def __init__(self, profile: Profile) -> None: ...

    async def run(self, code: str) -> SandboxResult:
        """As `ports.Sandbox.run`."""
        ...

    async def execute(self, program: Program) -> SandboxResult:
        """As `ports.Programs.execute`."""
        ...

    def session(self, program: Program) -> AbstractAsyncContextManager[Session]:
        """As `ports.Sessions.session`."""
        ...

    async def close(self) -> None:
        """As `ports.Sandbox.close`."""
        ...


class Proven:
    """The first of `candidates` that holds; a `ports.Sandbox` with `Programs` and `Sessions`. All
    of these raise `SandboxError` where none does, with what is wrong with each."""

    def __init__(self, candidates: Sequence[Full]) -> None:
        self._candidates, self._turn = list(candidates), asyncio.Lock()
        self._chosen: Full | None = None

    async def chosen(self) -> Full:
        """The sandbox that is used, proved if it was not yet."""
        if self._chosen is None:
            async with self._turn:
                if self._chosen is None:
                    self._chosen = await self._choose()
        return self._chosen

    async def run(self, code: str) -> SandboxResult:
        """As `ports.Sandbox.run`."""
        return await (await self.chosen()).run(code)

    async def execute(self, program: Program) -> SandboxResult:
        """As `ports.Programs.execute`."""
        return await (await self.chosen()).execute(program)

    @asynccontextmanager
    async def session(self, program: Program) -> AsyncIterator[Session]:
        """As `ports.Sessions.session`."""
        async with (await self.chosen()).session(program) as session:
            yield session

    async def close(self) -> None:
        """As `ports.Sandbox.close`."""
        for sandbox in self._candidates:
            await sandbox.close()

    async def _choose(self) -> Full:
        wrong = []
        for sandbox in self._candidates:
            problem = await prove(sandbox)
            if not problem:
                return sandbox
            wrong.append(f"`{sandbox.profile.backend}`: {problem}")
        self._turn = asyncio.Lock()  # the next try may be made from another event loop
        raise SandboxError(f"no sandbox holds here: {'; '.join(wrong)}; see: {_SEE}")


_SEE = "agentloop sandboxes check"


async def prove(sandbox: Full) -> str:
    """What is wrong with `sandbox`, in a few words; empty when its walls stand."""
    mark = model_cache() / "sandboxes" / _basis(sandbox)
    if mark.is_file():
        return ""
    try:
        tried, through = await escapes(sandbox, KEY_ATTEMPTS)
    except (SandboxError, OSError) as error:
        return str(error)
    if through or not tried:
        return f"it does not hold: {', '.join(through) or 'it claims nothing'}"
    with suppress(OSError):  # it is proved again next time
        mark.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        mark.touch(mode=0o600)
    return ""


async def escapes(sandbox: Full, names: Collection[str] = ()) -> tuple[int, list[str]]:
    """How many escape attempts were made (those called so; else all that share a run), of the kinds
    that `sandbox` claims to withstand, and those that got through. Raises `SandboxError` when
    they could not be made."""
    from agentloop.sandboxes.attacks import ATTEMPTS, Host, attack

    profile = sandbox.profile
    tried = [
        one
        for one in ATTEMPTS
        if one.attacks in sandbox.claims
        and one.name not in getattr(sandbox, "concedes", ())
        and (one.name in names if names else not one.alone)
    ]
    patient = type(sandbox)(profile.model_copy(update={"seconds": PROVING_SECONDS}))
    try:
        with Host() as host:
            found = await attack(patient, tried, host, profile.model_dump(mode="json"))
    finally:
        await patient.close()
    return len(tried), [str(one) for one in found]


def _basis(sandbox: Full) -> str:
    """A name for all that a proof rests on."""
    here = Path(__file__).parent
    rests = [repr(os.uname()), str(os.getuid()), platform.python_version()]
    rests += [repr(type(sandbox)), sandbox.profile.model_dump_json()]
    with suppress(OSError):
        rests.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    tools = [f"/usr/bin/{name}" for name in ("bwrap", "unshare", "setpriv", "sh", "docker")]
    for path in (*tools, *sorted(here.glob("*.py")), sandbox.profile.seccomp):
        with suppress(OSError):
            if path is not None:
                state = os.stat(path)
                rests.append(f"{path} {state.st_size} {state.st_mtime_ns}")
    return hashlib.sha256("\0".join(rests).encode()).hexdigest()[:32]
