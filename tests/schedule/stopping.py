"""A real `agentloop schedule` process that is stopped at some moment, and what it must leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from agentloop.store.archive import Archive

LIMIT = 10.0
"""Seconds from the signal to the end."""
MARK = "AGENTLOOP_TEST_FAMILY"


def start(
    folder: Path, home: Path, *options: str, script: Sequence[str] = ("-m", "agentloop")
) -> subprocess.Popen[str]:
    """A scheduler in a process group of its own; all that it starts inherits a mark."""
    environment = {**os.environ, MARK: str(home)}
    return subprocess.Popen(
        [sys.executable, *script, "schedule", str(folder), "--home", str(home), *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip


def family(home: Path) -> list[int]:
    """Processes alive that a scheduler of this home started (and itself), by their command line or
    environment; model servers are given a clean environment, but know their logs or parent."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            about = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if state != "Z" and str(home).encode() in about and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, children first."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, due = [], [pid]
    while due:
        below = parents.get(due.pop(), [])
        found += below
        due += below
    return found


def stop(child: subprocess.Popen[str], number: signal.Signals, home: Path) -> float:
    """Send the signal; seconds until it and all below it have ended. Fails when that takes longer
    than `LIMIT`, or when the code is another than the one for that signal."""
    below = descendants(child.pid)
    began = time.monotonic()
    child.send_signal(number)
    _, errors = child.communicate(timeout=LIMIT)
    while alive := [pid for pid in {*below, *family(home)} if _lives(pid)]:
        assert time.monotonic() - began < LIMIT, f"left behind: {alive}"
        time.sleep(0.02)
    seconds = time.monotonic() - began
    expected: Sequence[int] = (0, -15) if number == signal.SIGTERM else (130, -2)
    assert child.returncode in expected, (child.returncode, errors[-2000:])
    assert "Traceback" not in errors, errors[-3000:]
    return seconds


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def whole(home: Path) -> list[str]:
    """The log is whole and nothing half-made lies about; the names of the slots' states."""
    if not (home / "log.db").exists():
        return []
    drafts = [path for path in home.rglob(".*") if path.is_dir()]
    assert drafts == [], drafts
    with Archive(home) as archive:
        assert archive.verify()["ok"]
        return archive.log.keys("slot_ended")
