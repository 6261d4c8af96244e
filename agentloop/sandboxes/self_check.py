"""Does a sandbox keep what it promises? Attacks it and lists what got through.

Goes in: any `ports.Sandbox`; one that runs `Programs` or holds `Sessions` is asked about these too.
Comes out: one sentence per broken promise, none when it holds. The
host plants canaries (a file, a listening socket, an environment variable) and looks for them
afterwards, so a sandbox is judged by what happened and not by what it reports.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import tempfile
import time
from pathlib import Path

from agentloop.errors import SandboxError
from agentloop.ports import Programs, Sandbox, Sessions
from agentloop.records import SandboxResult
from agentloop.sandboxes.self_check_programs import PROGRAM_CHECKS, SESSION_CHECKS

MAX_OUTPUT = 2**20
"""Bytes of output that no profile may exceed while the code prints without end."""
MAX_SECONDS = 30.0
"""An endless loop must be over after this long, whatever the profile says."""


async def self_check(sandbox: Sandbox) -> list[str]:
    """What is wrong with `sandbox`; empty when nothing is."""
    problems: list[str] = []
    checks = [_works, _files, _sockets, _environment, _limits, _flood, _stateless]
    if isinstance(sandbox, Programs):
        checks += PROGRAM_CHECKS
    else:
        checks.append(_processes)
    if isinstance(sandbox, Sessions):
        checks += SESSION_CHECKS
    for check in checks:
        try:
            problems += await check(sandbox)
        except SandboxError as error:
            problems.append(f"it died in {check.__name__.strip('_')}: {error}")
    return problems


async def _works(sandbox: Sandbox) -> list[str]:
    text = "žluťoučký 你好 🎉 \\ \" '"
    result = await sandbox.run(f"print({text!r})")
    problems = [] if result.stdout == f"{text}\n" else [f"unicode became {result.stdout[:80]!r}"]
    result = await sandbox.run("print('before')\n1/0")
    if "before" not in result.stdout or "ZeroDivisionError" not in result.error:
        problems.append("output and error of failing code are not both reported")
    return problems


async def _files(sandbox: Sandbox) -> list[str]:
    secret = secrets.token_hex(16)
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        canary, written = Path(folder, "canary"), Path(folder, "written")
        canary.write_text(secret)
        for code in (
            f"print(open({str(canary)!r}).read())",
            f"from pathlib import Path\nprint(Path({str(canary)!r}).read_text())",
            f"import io\nprint(io.open({str(canary)!r}).read())",
        ):
            problems += _shows(await sandbox.run(code), secret, "reads a host file")
        await sandbox.run(f"f = open({str(written)!r}, 'w')\nf.write('x')\nf.close()")
        await sandbox.run(f"from pathlib import Path\nPath({str(written)!r}).write_text('x')")
        if written.exists():
            problems.append("writes a host file")
        await sandbox.run(f"import os\nos.remove({str(canary)!r})")
        if not canary.exists():
            problems.append("removes a host file")
    return problems


async def _sockets(sandbox: Sandbox) -> list[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        await sandbox.run(
            f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1)"
        )
        await sandbox.run(
            f"from urllib.request import urlopen\nurlopen('http://127.0.0.1:{port}', timeout=0.2)"
        )
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return []
    return ["opens a socket"]


async def _environment(sandbox: Sandbox) -> list[str]:
    name, secret = "AGENTLOOP_SELF_CHECK", secrets.token_hex(16)
    os.environ[name] = secret
    try:
        problems = []
        for code in (
            f"import os\nprint(os.environ.get({name!r}))",
            f"import os\nprint(os.getenv({name!r}))",
            "print(open('/proc/self/environ').read())",
        ):
            problems += _shows(await sandbox.run(code), secret, "reads the environment")
    finally:
        del os.environ[name]
    # A worker that started earlier has the environment of then.
    path = os.environ.get("PATH")
    if path:
        result = await sandbox.run("import os\nprint(os.environ['PATH'])")
        problems += _shows(result, path, "reads the host's PATH")
    return problems


async def _processes(sandbox: Sandbox) -> list[str]:
    secret = secrets.token_hex(8)
    half = len(secret) // 2
    shell = f"printf %s%s {secret[:half]} {secret[half:]}"  # the whole never stands in the code
    problems = []
    for code in (
        f"import subprocess\nprint(subprocess.run({shell.split()!r}, capture_output=True).stdout)",
        f"import os\nprint(os.popen({shell!r}).read())",
    ):
        problems += _shows(await sandbox.run(code), secret, "starts a process")
    return problems


async def _limits(sandbox: Sandbox) -> list[str]:
    problems = []
    started = time.monotonic()
    try:
        async with asyncio.timeout(MAX_SECONDS):
            result = await sandbox.run("while True:\n    pass")
        if not result.timed_out:
            problems.append("an endless loop is not reported as timed out")
    except TimeoutError:
        problems.append(f"an endless loop still runs after {time.monotonic() - started:.0f} s")
    for bomb in ("x = 'a' * 10**11", "x = []\nwhile True:\n    x.append('a' * 10**6)"):
        result = await sandbox.run(bomb)
        if not result.error:
            problems.append("a memory bomb is not stopped")
    result = await sandbox.run("def f():\n    return f()\nf()")
    if not result.error:
        problems.append("endless recursion is not stopped")
    return problems


async def _flood(sandbox: Sandbox) -> list[str]:
    result = await sandbox.run("while True:\n    print('flood' * 1000)")
    size = len(result.stdout.encode())
    if size > MAX_OUTPUT:
        return [f"{size} bytes of output were kept"]
    return [] if result.truncated else ["cut output is not marked as truncated"]


async def _stateless(sandbox: Sandbox) -> list[str]:
    secret = secrets.token_hex(16)
    await sandbox.run(f"kept = {secret!r}\nimport math\nmath.pi = {secret!r}")
    problems = _shows(await sandbox.run("print(kept)"), secret, "keeps a variable between runs")
    result = await sandbox.run("import math\nprint(math.pi)")
    return problems + _shows(result, secret, "keeps a patched module between runs")


def _shows(result: SandboxResult, secret: str, problem: str) -> list[str]:
    return [problem] if secret in result.stdout or secret in result.error else []
