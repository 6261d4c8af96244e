"""Run as a program: scripted cycles on a disk that is full from the k-th page on, one a case.

Goes in: a folder to work in, and the cases. Comes out: a line of JSON for each. One process imports
everything and forks for each case, which takes a tenth of the time. The disk is made full by a
limit on the size of files: the log's WAL grows by 4,120 bytes a page, so the limit is at a page.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

PAGE, HEADER = 4096 + 24, 32


def limit_of(case: int) -> int:
    """Bytes that a file may have in this case."""
    return HEADER + case * PAGE + 100 if case else 0


def alone(work: Callable[[], object]) -> object:
    """What `work` returns in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            told = json.dumps(work()).encode()
        except BaseException:
            told = json.dumps({"traceback": traceback.format_exc()}).encode()
        os.write(writer, told)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        told = stream.read()
    os.waitpid(child, 0)
    return json.loads(told)


def command(*arguments: str, limit: int | None = None) -> dict[str, object]:
    """One command: its exit code and what it printed."""
    from agentloop.cli import run

    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(list(arguments))
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def case(number: int, folder: Path) -> dict[str, object]:
    """A cycle until the disk is full; then there is room again."""
    workflow, home = str(folder / "workflows" / "tiny"), str(folder / f"home-{number}")
    cycle = ("cycle", workflow, "--home", home, "--json")
    full = alone(lambda: command(*cycle, limit=limit_of(number)))
    found = alone(lambda: command("store", "verify", "--home", home, "--json"))
    again = alone(lambda: command(*cycle, "--resume"))
    after = alone(lambda: command("store", "verify", "--home", home, "--json"))
    return {"case": number, "full": full, "verify": found, "again": again, "after": after}


WARM = ("cli.agents", "cli.session", "cli.store", "cycle", "lanes.instructions", "lanes.collect")
"""What a case needs; importing it starts no thread, which a fork would lose."""


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for name in WARM:
        importlib.import_module(f"agentloop.{name}")
    for one in sys.argv[2:]:
        print(json.dumps(case(int(one), place)), flush=True)
