"""Run attempts in a sandbox and say which of them got through.

Many share a run: each in a child and a folder of its own, so that none sees what another did. Those
that use up a limit or leave something behind have a run to themselves, some of these at once.
"""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentloop.errors import SandboxError
from agentloop.ports import Sandbox
from agentloop.records import Json, SandboxResult
from agentloop.sandboxes.attacks.attempt import PRELUDE, REACHED, Attempt
from agentloop.sandboxes.attacks.host import Host

TOGETHER = 40
"""Attempts of one run."""
AT_ONCE = 4
"""Runs at once of attempts that need one of their own."""
LATE = 5.0
"""Seconds after its time limit by which a run must have come back."""
SLACK = 1024
"""Bytes that a result may be longer than its limit: a note says what was left out."""


@dataclass(frozen=True)
class Reached:
    """An attempt that got through, and what shows it."""

    attempt: Attempt
    evidence: str

    def __str__(self) -> str:
        return f"{self.attempt.group}: {self.attempt.name} ({self.evidence})"


async def attack(
    sandbox: Sandbox,
    attempts: Sequence[Attempt],
    host: Host,
    limits: Mapping[str, Json],
    *,
    together: int = TOGETHER,
) -> list[Reached]:
    """The attempts that got out of `sandbox`.

    `limits` are its profile's fields. `together=1` is for a sandbox that cannot start processes.
    Raises `SandboxError` when the attempts could not be made, which is no sign that they failed.
    """
    hints = {**host.hints, **limits}
    shared = [attempt for attempt in attempts if not attempt.alone and together > 1]
    told: dict[Attempt, str] = {}
    for start in range(0, len(shared), together):
        told |= await _together(sandbox, shared[start : start + together], hints)
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(attempt: Attempt) -> str:
        async with turns:
            return await _alone(sandbox, attempt, host, hints)

    alone = [attempt for attempt in attempts if attempt not in told]
    told |= dict(zip(alone, await asyncio.gather(*map(one, alone)), strict=True))
    seen = host.seen()
    found = []
    for attempt in attempts:
        if attempt.name in seen:
            found.append(Reached(attempt, "the host saw it"))
        elif host.shows(told[attempt]):
            found.append(Reached(attempt, "it told a secret of the host"))
        elif REACHED in told[attempt]:
            found.append(Reached(attempt, told[attempt].strip()[-200:]))
    return found


async def _together(
    sandbox: Sandbox, attempts: Sequence[Attempt], hints: Mapping[str, Json]
) -> dict[Attempt, str]:
    """What each printed."""
    code = (
        f"JOBS = {[(attempt.name, attempt.code) for attempt in attempts]!r}\n"
        f"H = {dict(hints)!r}\n{PRELUDE}\n{DRIVER}"
    )
    result = await sandbox.run(code)
    texts = dict(json.loads(line) for line in result.stdout.splitlines() if line[:2] == '["')
    if missing := [attempt.name for attempt in attempts if attempt.name not in texts]:
        why = result.error or ("time is up" if result.timed_out else "no reason given")
        raise SandboxError(f"{len(missing)} attempts were not made, from `{missing[0]}` on: {why}")
    return {attempt: texts[attempt.name] for attempt in attempts}


async def _alone(sandbox: Sandbox, attempt: Attempt, host: Host, hints: Mapping[str, Json]) -> str:
    """What it printed; `REACHED` and why when its result or what it left is not as promised."""
    comm = f"{host.token[:8]}{zlib.crc32(attempt.name.encode()) % 10**6:06}"
    started = time.monotonic()
    try:
        result = await sandbox.run(attempt.source({**hints, "comm": comm}))
    except SandboxError as error:
        return f"{REACHED}: the sandbox is blamed: {error}"
    took = time.monotonic() - started
    left = await asyncio.to_thread(host.survivors, comm) if attempt.group == "survivors" else 0
    faults = _faults(result, took, left, hints)
    return result.stdout + result.error + "".join(f"\n{REACHED}: {fault}" for fault in faults)


def _faults(result: SandboxResult, took: float, left: int, hints: Mapping[str, Json]) -> list[str]:
    seconds, most = hints["seconds"], hints["output_bytes"]
    assert isinstance(seconds, int | float) and isinstance(most, int)
    size = len(result.stdout.encode(errors="surrogatepass"))
    return [
        text
        for wrong, text in (
            (took > seconds + LATE, f"it came back after {took:.1f} s"),
            (left, f"{left} processes are left"),
            (size > most + SLACK, f"{size} bytes of output are kept"),
            (any("\ud800" <= char <= "\udfff" for char in result.stdout), "its text is no text"),
            (not result.error.isprintable(), "its error steers the terminal"),
        )
        if wrong
    ]


DRIVER = r'''
import json, select
def tried(code):
    """What an attempt prints in a child of its own, within 2.5 s."""
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(source)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        signal.alarm(2)
        try:
            exec(compile(code, NAME, "exec"), globals())
        except BaseException as error:
            print(type(error).__name__, error)
        sys.stdout.flush()
        os._exit(0)
    os.close(sink)
    text, until = b"", time.monotonic() + 2.5
    while select.select([source], [], [], max(0, until - time.monotonic()))[0]:
        part = os.read(source, 65536)
        if not part:
            break
        text += part
    os.close(source)
    os.waitpid(child, 0)
    return text[:16384].decode(errors="replace")
home = os.getcwd()
for number, (NAME, code) in enumerate(JOBS):
    try:
        os.mkdir(f"{home}/{number}")
        os.chdir(f"{home}/{number}")
    except OSError:
        pass
    print(json.dumps([NAME, tried(code)]), flush=True)
'''
