"""Names that say which process made something, so that what a killed one left is found.

In: a process of this machine. Out: its name, which no other process ever has (its namespace of
processes, when it started and its number), whether it has ended, and temporary folders called so.
Whoever starts next removes what processes left that were killed and could not do so themselves.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

PREFIX = "agentloop-"
_NAME = re.compile(r"(\d+)-(\d+)-(\d+)")


def owner(process: int | None = None) -> str:
    """`SPACE-START-PID` of a process, this one by default; empty when there is none."""
    number = os.getpid() if process is None else process
    try:
        stat = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return ""
    return f"{_space()}-{stat.rpartition(')')[2].split()[19]}-{number}"


def ended(name: str) -> bool:
    """Has the process that `name` begins with ended? Not for all that can be told: what is no
    `owner`, and processes that cannot be seen from here, count as alive."""
    known = _NAME.match(name)
    if known is None or known[1] != _space():
        return False
    return owner(int(known[3])) != known[0]


@contextmanager
def folder(kind: str, place: str | None = None, mode: int = 0o700) -> Iterator[str]:
    """A folder in `place` (by default where temporary files lie) that is gone when the context is
    left, or, after a `kill -9`, when another process makes its first one there."""
    where = os.path.realpath(place or tempfile.gettempdir())
    _sweep(where)
    prefix = f"{PREFIX}{kind}-{owner()}-"
    made = tempfile.TemporaryDirectory(prefix=prefix, dir=where, ignore_cleanup_errors=True)
    with made as path:
        os.chmod(path, mode)
        yield path


def open_to_all(*paths: Path) -> bool:
    """Can any user reach and read all of them?"""
    whole = {one for path in paths for one in (path, *path.parents)}
    return all(os.stat(path).st_mode & 0o5 == 0o5 for path in whole)


def open_place() -> str:
    """Where another user can reach a folder."""
    places = (tempfile.gettempdir(), "/tmp", "/var/tmp")
    return next((one for one in places if open_to_all(Path(one))), places[0])


@cache
def _sweep(place: str) -> None:
    """Remove folders of processes that have ended."""
    with os.scandir(place) as found:
        for one in found:
            kind, _, name = one.name.removeprefix(PREFIX).partition("-")
            if one.name == f"{PREFIX}{kind}-{name}" and ended(name):
                shutil.rmtree(one.path, ignore_errors=True)


def _space() -> str:
    return os.readlink("/proc/self/ns/pid").strip("pid:[]")
