"""Every sandbox keeps one contract: what code gets and gives back, and what is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from docker_engine import needs_engine

from agentloop.errors import SessionEnded, UsageError
from agentloop.ports import Programs, Sandbox, Session, Sessions
from agentloop.records import Program, SandboxResult
from agentloop.sandboxes import cgroups
from agentloop.sandboxes.monty import MontySandbox
from agentloop.sandboxes.process import ProcessSandbox
from agentloop.sandboxes.profile import Profile, open_profile, read_profile

ROOT = Path(__file__).parents[2]


def _monty(**limits: Any) -> Sandbox:
    return MontySandbox(Profile(backend="monty", **limits))


def _process(**limits: Any) -> Sandbox:
    return ProcessSandbox(Profile(backend="process", unsafe=True, **{"memory_mb": 512} | limits))


def _shipped(name: str, **limits: Any) -> Sandbox:
    profile = read_profile(ROOT / "sandboxes" / name / "profile.yaml")
    return open_profile(Profile(**profile.model_dump() | limits))


LATE = 30.0
"""Seconds: far from what anything here takes, even on a machine with much else to do."""
Make = Callable[..., Any]
REAL = ("bwrap", "landlock", "docker")
FULL = [
    pytest.param(_process, id="process"),
    *(
        pytest.param(
            partial(_shipped, name),
            id=name,
            marks=[pytest.mark.integration, *([needs_engine] if name == "docker" else [])],
        )
        for name in REAL
    ),
]
"""Backends that run whole programs; those that need the system's help are `integration`."""


@pytest.fixture(params=[pytest.param(_monty, id="monty"), *FULL])
def make(request: pytest.FixtureRequest) -> Make:
    return request.param


@pytest.fixture(params=FULL)
def full(request: pytest.FixtureRequest) -> Make:
    return request.param


@pytest.fixture(autouse=True, scope="module")
def imported() -> None:
    run(_monty(), "")


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)  # code may run as another user
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setattr("agentloop.sandboxes.docker.WARM", 0)  # a container more takes its time
    before = len(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + 3  # a monty session that was late stops at its own limit
    while (now := len(os.listdir("/proc/self/fd"))) > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert now <= before
    place.rmdir()  # which fails when something is left


def use(sandbox: Sandbox, work: Awaitable[Any]) -> Any:
    async def main() -> Any:
        try:
            return await work
        finally:
            await sandbox.close()

    return asyncio.run(main())


def run(sandbox: Sandbox, code: str) -> SandboxResult:
    return use(sandbox, sandbox.run(code))


def execute(sandbox: Programs, code: str, *arguments: str, **files: bytes) -> SandboxResult:
    named = {name.replace("_py", ".py"): data for name, data in files.items()}
    program = Program(code=code, files=named, arguments=arguments)
    return use(sandbox, sandbox.execute(program))  # type: ignore[arg-type]


def ask(sandbox: Sessions, code: str, *lines: str, seconds: float = LATE) -> list[str]:
    """The answers, the last one perhaps the text of `SessionEnded`."""

    async def main() -> list[str]:
        async with sandbox.session(Program(code=code)) as session:
            return await answers(session, lines, seconds)

    return use(sandbox, main())  # type: ignore[arg-type]


async def answers(session: Session, lines: tuple[str, ...], seconds: float) -> list[str]:
    said: list[str] = []
    for line in lines:
        try:
            await asyncio.sleep(0.1 if line == "three" else 0)
            said.append(await session.ask(line, seconds=LATE if line == "ok" else seconds))
        except SessionEnded as error:
            said.append(f"ended: {error}")
    return said


@pytest.mark.parametrize(
    ("code", "stdout", "error"),
    [
        ("print(1 + 1)", "2", ""),
        ("1 + 1", "2", ""),
        ("x = 2\n[x, 'a']", "[2, 'a']", ""),
        ("print('p')\n5", "p", ""),
        ("print('')\n5", "", ""),
        ("None", "", ""),
        ("", "", ""),
        ("'žluť 🎉'", "'žluť 🎉'", ""),
        ("print('a')\n1/0", "a", "ZeroDivisionError: division by zero"),
        ("import math\nmath.gcd(12, 18)", "6", ""),
    ],
)
def test_a_snippet_gives(make: Make, code: str, stdout: str, error: str) -> None:
    result = run(make(), code)
    assert (result.stdout.strip(), result.error) == (stdout, error)


@pytest.mark.parametrize(
    "code", ["def f(", "\x00", "'\ud800'", "import numpy", "raise SystemError"]
)
def test_bad_code_is_the_codes_own_error(make: Make, code: str) -> None:
    result = run(make(), code)
    assert result.error and not result.timed_out


def test_a_run_ends_in_time(make: Make) -> None:
    began = time.monotonic()
    result = run(make(seconds=0.5), "print('a')\nwhile True: pass")
    assert result.timed_out and result.stdout == "a\n" and result.returncode is None
    assert time.monotonic() - began < LATE


def test_output_keeps_its_head_and_its_tail(make: Make) -> None:
    code = "print('start')\nfor i in range(3000): print(i)\nprint('end')"
    result = run(make(output_bytes=4096, seconds=10), code)
    assert result.truncated and len(result.stdout) < 4200 and result.error == ""
    assert result.stdout.startswith("start\n0\n1\n") and result.stdout.endswith("2999\nend\n")


def test_memory_is_limited(make: Make) -> None:
    result = run(make(seconds=20), "x = 'a' * 10**10")
    assert "MemoryError" in result.error and not result.timed_out


def test_nothing_is_kept_between_runs(make: Make) -> None:
    async def main(sandbox: Sandbox) -> str:
        await sandbox.run("kept = 1")
        return (await sandbox.run("print(kept)")).error

    sandbox = make()
    assert "NameError" in use(sandbox, main(sandbox))


def test_a_session_answers(make: Make) -> None:
    code = "seen = []\ndef answer(line):\n    seen.append(line)\n    return ' '.join(seen)"
    assert ask(make(), code, "a", "ž 🎉", "") == ["a", "a ž 🎉", "a ž 🎉 "]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("return 5", "answer() must return"),
        ("return 'a\\nb'", "answer() must return"),
        ("return 'a' * 70000", "65536"),
        ("while True: pass", "no answer within 0.5 s"),
        ("raise SystemExit", "ended early"),
    ],
)
def test_a_session_that_does_not_answer_has_ended(make: Make, body: str, says: str) -> None:
    code = f"def answer(line):\n    if line == 'ok': return 'ok'\n    {body}"
    said = ask(make(), code, "ok", "bad", "ok", seconds=0.5)
    assert said[0] == "ok" and says in said[1] and said[2] == said[1]


@pytest.mark.parametrize("code", ["1 / 0", "def answer(", "x = 1"])
def test_a_session_whose_code_fails_has_ended(make: Make, code: str) -> None:
    assert ask(make(), code, "a")[0].startswith("ended: it ended early: ")


def test_a_question_is_one_line(make: Make) -> None:
    for line in ("a\nb", "a" * 70000):
        with pytest.raises(UsageError, match="one line"):
            ask(make(), "def answer(line): return line", line)


def test_many_at_once(make: Make) -> None:
    async def main(sandbox: Any) -> list[str]:
        async def one(n: int) -> str:
            async with sandbox.session(Program(code=f"def answer(x): return x * {n}")) as session:
                own = await sandbox.run(f"print({n})")
                return own.stdout + await session.ask("a", seconds=LATE)

        return await asyncio.gather(*map(one, range(8)))

    sandbox = make(seconds=30)
    assert use(sandbox, main(sandbox)) == [f"{n}\n" + "a" * n for n in range(8)]


def test_a_program_has_its_files_and_arguments(full: Make) -> None:
    code = "import sys, os, part\nprint(part.x, sys.argv[1:], sorted(os.listdir()))\nsys.exit(3)"
    result = execute(full(), code, "a b", "ž", part_py=b"x = 7", data=b"\x00\xff")
    assert result.stdout == "7 ['a b', 'ž'] ['data', 'part.py']\n"
    assert (result.error, result.returncode) == ("exit status 3", 3)


def test_a_file_stands_in_for_no_module(full: Make) -> None:
    result = execute(full(), "import json\nprint(json.dumps(1))", json_py=b"raise SystemExit")
    assert result.stdout == "1\n"


@pytest.mark.parametrize("name", ["../a", "/a", "a/b", ".", "..", "", "a\0", "a" * 300])
def test_files_have_plain_names(full: Make, name: str) -> None:
    with pytest.raises(UsageError, match="no file name"):
        use(full(), full().execute(Program(code="", files={name: b""})))


def test_programs_find_nothing_of_the_host(full: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED", "secret-value")
    code = (
        "import os\nprint(dict(os.environ), open('/proc/self/environ').read())\n"
        "print(len(os.listdir('/proc/self/fd')), os.read(0, 9), os.getcwd() != '/')"
    )
    result = execute(full(), code)
    # The three standard streams and the listing's own: the channel is closed. A user who cannot
    # reach the interpreter (root's, under /root) has it by one more.
    assert "secret" not in result.stdout
    assert re.search(r"\n[45] b'' True\n$", result.stdout), result


def test_bytes_that_are_no_text_are_replaced(full: Make) -> None:
    result = execute(full(), "import os\nos.write(1, b'a\\xff\\n')\nos.write(2, b'\\xfe')\n1/0")
    assert result.stdout == "a�\n" and "ZeroDivisionError" in result.error


def test_a_signal_is_told(full: Make) -> None:
    result = execute(full(), "import os\nos.abort()")
    assert (result.returncode, result.error) == (134, "ended by SIGABRT")


def test_a_flood_ends_early(full: Make) -> None:
    began = time.monotonic()
    result = execute(full(seconds=30), "while True: print('x' * 10000)")
    assert result.truncated and not result.timed_out and "too many" in result.error
    assert len(result.stdout) < 70000 and time.monotonic() - began < LATE


def test_what_a_program_starts_ends_with_it(full: Make) -> None:
    name = f"sbx{secrets.token_hex(4)}"
    code = (
        "import ctypes, os, time\n"
        f"ctypes.CDLL(None).prctl(15, {name.encode()!r}, 0, 0, 0)\nif os.fork(): "
    )
    began = time.monotonic()
    early = execute(full(seconds=LATE), code + "raise SystemExit(7)\ntime.sleep(60)")
    late = execute(full(seconds=0.5), code + "pass\ntime.sleep(60)")
    assert early.returncode == 7 and late.timed_out
    assert time.monotonic() - began < LATE
    assert not running(name)


def running(name: str) -> list[str]:
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            text = status.read_text()
            if text.startswith(f"Name:\t{name}\n") and "\nState:\tZ" not in text:
                found.append(status.parent.name)
    return found


@pytest.mark.integration
@pytest.mark.parametrize("name", ["bwrap", "landlock"])
def test_a_program_ends_with_its_host(name: str) -> None:
    called = f"sbx{secrets.token_hex(4)}"
    code = f"import ctypes, time\nctypes.CDLL(None).prctl(15, {called.encode()!r}, 0, 0, 0)\n"
    with host(name, code + "time.sleep(60)") as pid:
        assert until(lambda: bool(running(called)))
    assert until(lambda: not running(called))
    with cgroups.group(read_profile(ROOT / "sandboxes" / name / "profile.yaml")):
        left = [path.name.rsplit("-", 2)[1] for path in cgroups.ROOT.rglob("agentloop-*-*")]
    assert str(pid) not in left
    assert run(_shipped(name), "1").stdout == "1\n"  # which takes away the folder too


@pytest.mark.parametrize(
    "name", ["process", pytest.param("landlock", marks=pytest.mark.integration)]
)
def test_the_next_start_takes_away_what_a_killed_host_left(name: str) -> None:
    """Its folder, and, where there are control groups, what its program had started."""
    place, called = Path(tempfile.gettempdir()), f"sbx{secrets.token_hex(4)}"
    code = (
        "import ctypes, os, time\nopen('mark', 'w').close()\n"
        "if os.fork() == 0: "
        f"ctypes.CDLL(None).prctl(15, {called.encode()!r}, 0, 0, 0)\ntime.sleep(5)"
    )
    with host(name, code):
        assert until(lambda: bool(running(called)) and bool(list(place.glob("*/mark"))))
    assert list(place.glob("*/mark"))
    (place / "agentloop-other-1-1-1-x").mkdir()  # of another machine's process, for all we know
    sandbox = _process() if name == "process" else _shipped(name)
    with cgroups.group(Profile(backend="monty")) as group:
        killed = group.made and name == "landlock"
    assert run(sandbox, "1").stdout == "1\n"
    assert not killed or not running(called)
    assert [path.name for path in place.iterdir()] == ["agentloop-other-1-1-1-x"]
    (place / "agentloop-other-1-1-1-x").rmdir()


@contextlib.contextmanager
def host(name: str, code: str) -> Iterator[int]:
    """A process that runs `code` in a shipped sandbox, and is killed."""
    text = (
        "import asyncio\nfrom pathlib import Path\n"
        "from agentloop.sandboxes.profile import bare, read_profile\n"
        f"profile = read_profile(Path({str(ROOT)!r}) / 'sandboxes/{name}/profile.yaml')\n"
        f"asyncio.run(bare(profile).run({code!r}))\n"
    )
    environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    with subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, env=environment) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def until(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + LATE
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


def test_answers_cannot_be_given_ahead(full: Make) -> None:
    code = (
        "import os, stat\n"
        "fds = [n for n in range(3, 4096) if os.path.exists(f'/proc/self/fd/{n}')]\n"
        "kinds = {n: os.fstat(n).st_mode for n in fds}\n"
        "channel = [n for n in fds if stat.S_ISSOCK(kinds[n]) or stat.S_ISFIFO(kinds[n])][-1]\n"
        "def answer(line):\n"
        "    if line == 'two': os.write(channel, b'forged\\n')\n"
        "    return line\n"
    )
    assert ask(full(), code, "one", "two", "three")[0] == "one"
    assert ask(full(), code, "one", "two", "three")[2].startswith("ended: ")
    ahead = ask(full(), code + "os.write(channel, b'forged\\n')", "one")
    assert ahead == ["ended: it wrote before it was asked"]
