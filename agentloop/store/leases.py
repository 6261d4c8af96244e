"""A name in, the right to act under it out: leases with fencing tokens, in the log's own file.

The token grows with every new holder, and an append may carry it: a holder that slept past its
time and wakes up is refused inside the transaction, whatever its clock says. Expiry is measured
with the monotonic clock, which all processes of a machine share (SQLite's WAL keeps a log on one
machine), so that setting the machine's clock neither ends nor prolongs a lease.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from agentloop.errors import StoreError
from agentloop.store.query import Fence, Fences


class LeaseHeld(StoreError):
    """Another process works under this name."""


class LeaseLost(StoreError):
    """Another process took the lease over; what carries the old token is refused."""


def take(db: sqlite3.Connection, name: str, holder: str, ttl: float) -> int:
    """The new token; raises `LeaseHeld` when someone holds the lease (the same holder too).

    All who take a name give the same `ttl`. An expiry further away than that is one of before the
    machine was started again, and counts as past."""
    now = time.monotonic()
    row = db.execute("SELECT token, holder, expires FROM lease WHERE name = ?", (name,)).fetchone()
    if row and row[1] is not None and 0 < row[2] - now <= ttl and not gone(row[1]):
        raise LeaseHeld(
            f"`{name}` is held by {_shown(row[1])} for {row[2] - now:.0f} more seconds; "
            "wait for it to finish or to expire"
        )
    token = row[0] + 1 if row else 1
    db.execute(
        "INSERT OR REPLACE INTO lease (name, token, holder, expires) VALUES (?, ?, ?, ?)",
        (name, token, holder, now + ttl),
    )
    return token


def holder() -> str:
    """This process, as a holder of leases: machine, process namespace (a container has its own),
    number and start, as numbers are given again."""
    return ":".join((os.uname().nodename, _space(), str(os.getpid()), _start(os.getpid())))


def gone(name: str) -> bool:
    """Whether a holder was a process of this machine that has ended: after a crash nobody has to
    wait for its lease to expire. Of another container nobody here can tell."""
    node, space, pid, start = (*name.split(":"), "", "", "", "")[:4]
    if (node, space) != (os.uname().nodename, _space()) or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _start(int(pid)) not in ("", start)


def _space() -> str:
    """Which numbers of processes are meant; empty where the system has no such thing."""
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return ""


def _start(pid: int) -> str:
    """When a process began, in ticks of the system's own clock; `ended` when it has ended and
    nobody asked how, empty where the system does not say. See proc(5), `stat`."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("latin-1")
    except OSError:
        return ""
    # The name of the program comes before, in brackets, and may hold anything.
    state, *fields = text.rpartition(")")[2].split()
    return "ended" if state in "ZX" else fields[18]


def _shown(name: str) -> str:
    node, *rest = name.split(":")
    return f"process {rest[1]} of {node}" if len(rest) == 3 else name


def check(db: sqlite3.Connection, fences: Fences) -> None:
    """Raises `LeaseLost` unless each token is the latest one and was not released. An expired
    lease that nobody took since is still good: no one else can have acted under it."""
    for name, token in fences if isinstance(fences[0], tuple) else (fences,):
        row = db.execute("SELECT token, holder FROM lease WHERE name = ?", (name,)).fetchone()
        if row is None or row[0] != token or row[1] is None:
            raise LeaseLost(f"the lease `{name}` was lost to another process; nothing was written")


def extend(db: sqlite3.Connection, fence: Fence, ttl: float) -> None:
    """Hold it for `ttl` seconds from now; raises `LeaseLost` when it was lost."""
    check(db, fence)
    expires = time.monotonic() + ttl
    db.execute("UPDATE lease SET expires = ? WHERE name = ?", (expires, fence[0]))


def drop(db: sqlite3.Connection, fence: Fence) -> None:
    """Give it back; nothing happens when it was lost. The token stays, so that it only grows."""
    db.execute("UPDATE lease SET holder = NULL WHERE name = ? AND token = ?", fence)
