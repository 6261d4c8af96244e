"""The part of `self_check` that is about whole programs and sessions.

Goes in: a sandbox with `ports.Programs` or `ports.Sessions`. Comes out: a sentence per broken
promise: files and arguments, working folder, bytes, exit status, streams, what is left behind;
and for a session its answers, and that code cannot answer ahead, late, or not at all.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path
from typing import Any

from agentloop.errors import SessionEnded
from agentloop.records import Program
from agentloop.sandboxes.egress import ENVIRONMENT

GONE_SECONDS = 2.0
"""After its result is back, what a program started is gone within this."""
_SHOW = """\
import os, sys, part
told = [name for name in os.environ if name not in ENVIRONMENT]
print(part.text, sys.argv[1:], sorted(os.listdir()), os.path.isabs(os.getcwd()), len(told))
print(open("bytes", "rb").read() == bytes(range(256)), os.read(0, 1))
open("new", "w").write("x")
sys.exit(7)
"""
_LEAVES = """\
import ctypes, os, time
ctypes.CDLL(None).prctl(15, {name!r}, 0, 0, 0)
if os.fork() == 0:
    time.sleep(30)
time.sleep({seconds})
"""


async def _files(sandbox: Any) -> list[str]:
    files = {"part.py": "text = 'ž 🎉'".encode(), "bytes": bytes(range(256))}
    program = Program(
        code=f"ENVIRONMENT = {[*ENVIRONMENT]}\n{_SHOW}", files=files, arguments=("a b", "ž")
    )
    problems = []
    for _ in range(2):  # the second shows whether the first left something
        result = await sandbox.execute(program)
        first, _, second = result.stdout.partition("\n")
        if not first.startswith("ž 🎉 ['a b', 'ž'] ['bytes', 'part.py'] True "):
            problems.append(f"a program's files, arguments or folder are wrong: {first[:100]!r}")
        elif int(first.split()[-1]) > 3:  # a launcher's PWD, the locale, where libraries lie
            problems.append("a program has an environment")
        if not problems and second != "True b''\n":
            problems.append(f"a program's bytes or its stdin are wrong: {second[:100]!r}")
        if result.returncode != 7:
            problems.append(f"exit status 7 became {result.returncode}")
    return list(dict.fromkeys(problems))


async def _module(sandbox: Any) -> list[str]:
    program = Program(code="import json\nprint(json.dumps(1))", files={"json.py": b"dumps = repr"})
    result = await sandbox.execute(program)
    forged = await sandbox.execute(Program(code="import os\nos.write(1, b'\\xff\\n')"))
    problems = [] if forged.stdout == "�\n" else ["bytes that are no text are not replaced"]
    if result.stdout != "1\n" or result.returncode != 0:
        problems.append("a file stands in for a module of the standard library")
    return problems


async def _left(sandbox: Any) -> list[str]:
    problems = []
    for seconds, when in ((0, "ended"), (600, "ran out of time")):
        name = secrets.token_hex(7)
        result = await sandbox.execute(
            Program(code=_LEAVES.format(name=name.encode(), seconds=seconds))
        )
        if result.timed_out != bool(seconds):
            problems.append(f"a program that {when} is not reported so")
        for _ in range(int(GONE_SECONDS * 50)):
            if not (left := await asyncio.to_thread(running, name)):
                break
            await asyncio.sleep(0.02)
        if left:
            problems.append(f"{left} processes are left of a program that {when}")
    return problems


def running(name: str) -> int:
    """Processes that are called so, without those that are dead and not yet buried by init."""
    found = 0
    for one in filter(str.isdigit, os.listdir("/proc")):
        try:
            status = Path("/proc", one, "status").read_text()
        except OSError:
            continue
        found += status.startswith(f"Name:\t{name}\n") and "\nState:\tZ" not in status
    return found


async def _answers(sandbox: Any) -> list[str]:
    code = "seen = []\ndef answer(line):\n    seen.append(line)\n    return '|'.join(seen)"
    async with sandbox.session(Program(code=code)) as session:
        said = [await session.ask(line, seconds=20) for line in ("a", "ž 🎉", "")]
    return [] if said == ["a", "a|ž 🎉", "a|ž 🎉|"] else [f"a session answers {said!r:.100}"]


async def _no_answers(sandbox: Any) -> list[str]:
    problems = []
    for body in ("while True: pass", "1 / 0", "return 'a' * 10**6", "return 'a\\nb'", "return 1"):
        async with sandbox.session(Program(code=f"def answer(line):\n    {body}")) as session:
            try:
                said = await session.ask("a", seconds=0.5)
                problems.append(f"`{body}` is taken for an answer: {said[:40]!r}")
            except SessionEnded:
                pass
    return problems


PROGRAM_CHECKS = [_files, _module, _left]
SESSION_CHECKS = [_answers, _no_answers]
