"""Limits on all processes of a sandbox together: memory, processes, processor time.

In: a profile's limits. Out: a control group of the kernel below the caller's own, version 1 or 2,
that is gone when the context is left, or none where this user cannot make one. Without one, limits
hold for each process alone (`setrlimit`), which `Group.made` says.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentloop.sandboxes.owned import PREFIX, ended, owner
from agentloop.sandboxes.profile import Profile

ROOT = Path("/sys/fs/cgroup")
PERIOD = 100_000
"""Microseconds over which processor time is counted, the kernel's default."""
GONE_SECONDS = 5.0
"""Until processes that were killed have left their group."""


class Group:
    """Folders of one control group: one in version 2, one per controller in version 1."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders

    @property
    def made(self) -> bool:
        """Whether there is one."""
        return bool(self.folders)

    def join(self, launcher: int) -> None:
        """Take in the interpreter that `launcher` has become or started; whatever it starts later
        is in the group as well. Only that: each process that moves costs the kernel milliseconds,
        and the launcher must live to tell how the code ended."""
        interpreter = [launcher, *descendants(launcher)][-1]
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(str(interpreter))

    def out_of_memory(self) -> bool:
        """Has the kernel killed one of its processes for memory?"""
        for folder in self.folders:
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    words = (folder / name).read_text().split()
                    if int(words[words.index("oom_kill") + 1]):
                        return True
        return False

    def remove(self) -> None:
        """Kill what is left in it and take it away."""
        until = time.monotonic() + GONE_SECONDS
        for folder in self.folders:
            while folder.is_dir():
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    break
                with contextlib.suppress(OSError):
                    for pid in (folder / "cgroup.procs").read_text().split():
                        if pid != "0":  # one that cannot be seen from here; to `kill`, all of ours
                            os.kill(int(pid), signal.SIGKILL)
                if time.monotonic() > until:
                    break
                time.sleep(0.002)


@contextmanager
def group(profile: Profile) -> Iterator[Group]:
    """A control group with the profile's limits; empty where it cannot be made."""
    made = Group([])
    try:
        try:
            _make(made, profile)
        except OSError:
            made.remove()
            made.folders = []
        yield made
    finally:
        made.remove()


def _make(made: Group, profile: Profile) -> None:
    name = f"{PREFIX}{owner()}-{secrets.token_hex(8)}"
    memory, quota = profile.memory_mb * 2**20, int(profile.cpu * PERIOD)
    parents = _own()
    if "" in parents and (parents[""] / "cgroup.controllers").exists():
        held = (parents[""] / "cgroup.controllers").read_text().split()
        if {"memory", "pids", "cpu"} <= set(held):
            folder = _folder(made, parents[""] / name)
            _write(folder, {"memory.max": memory, "pids.max": profile.pids})
            _write(folder, {"cpu.max": f"{quota} {PERIOD}"})
            _write(folder, {"memory.swap.max": 0}, optional=True)
            return
    memory_folder = _folder(made, parents["memory"] / name)
    _write(memory_folder, {"memory.limit_in_bytes": memory})
    _write(memory_folder, {"memory.memsw.limit_in_bytes": memory}, optional=True)
    _write(_folder(made, parents["pids"] / name), {"pids.max": profile.pids})
    cpu = _folder(made, parents["cpu"] / name)
    _write(cpu, {"cpu.cfs_period_us": PERIOD, "cpu.cfs_quota_us": quota})


def _own() -> dict[str, Path]:
    """The caller's own group under each controller of version 1, and under "" of version 2.
    Raises `OSError` when one is missing."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            bases = [ROOT / names, ROOT / name] if name else [ROOT, ROOT / "unified"]
            base = next((base for base in bases if (base / "cgroup.procs").exists()), ROOT)
            found[name] = base / path.lstrip("/")
    if not {"memory", "pids", "cpu"} <= found.keys() and "" not in found:
        raise FileNotFoundError("no control groups")
    return {"memory": ROOT, "pids": ROOT, "cpu": ROOT} | found


def _folder(made: Group, path: Path) -> Path:
    for old in path.parent.glob(f"{PREFIX}*-*"):
        if ended(old.name.removeprefix(PREFIX)):  # it was killed; what it ran may still be there
            Group([old]).remove()
    path.mkdir()
    made.folders.append(path)
    return path


def _write(folder: Path, values: dict[str, int | str], *, optional: bool = False) -> None:
    for name, value in values.items():
        try:
            (folder / name).write_text(str(value))
        except OSError:
            if not optional:
                raise


def descendants(pid: int) -> list[int]:
    """Processes that `pid` started, and theirs, each after the one that started it."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{one}/task"):
                children = Path(f"/proc/{one}/task/{task}/children").read_text().split()
                waiting += map(int, children)
                found += map(int, children)
    return found
