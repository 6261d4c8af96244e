"""Full Python held back by Landlock, a filter of calls and limits: where namespaces cannot be had.

In: a profile with a filter (`seccomp.json`). Out: a sandbox whose code can read the interpreter and
write in one folder, in the host's own view of processes and mounts. Partial: it sees when files
exist and what they weigh (`stat` is not held back), the disk has a limit for each file only, and
an ordinary user's processes are counted with their other ones. Root's code runs as a user of its
own, who may not be able to reach the interpreter (under `/root`, say): then it is reached through a
descriptor that is left open.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from agentloop.errors import UsageError
from agentloop.sandboxes.bwrap import UIDS, read_from
from agentloop.sandboxes.cgroups import group
from agentloop.sandboxes.interpreter import interpreter
from agentloop.sandboxes.launched import Launched, Start
from agentloop.sandboxes.owned import folder, open_place, open_to_all
from agentloop.sandboxes.profile import Profile
from agentloop.sandboxes.seccomp import read_filter

SOURCE = Path(__file__).with_name("landlocked.py").read_text(encoding="utf-8")
CONTROLS = frozenset({"environment", "cgroup", "rlimits", "user"})
"""What `without` can leave out."""
CLAIMS = frozenset({
    "files", "devices", "environment", "descriptors", "processes", "ipc", "network", "families",
    "mounts", "namespaces", "privileges", "syscalls", "memory", "pids", "cpu", "time", "survivors",
    "output",
})  # fmt: skip
"""The properties (`attacks.Attempt.attacks`) that hold where a control group can be made."""


CONCEDES = frozenset({"size of a host file"})
"""Attempts on what it claims that get through all the same: Landlock does not hold back `stat`."""


class LandlockSandbox(Launched):
    """A sandbox of rules. Raises `UsageError` where there is no Linux or the profile no filter."""

    claims, concedes = CLAIMS, CONCEDES

    def __init__(self, profile: Profile, without: Collection[str] = ()) -> None:
        if unknown := set(without) - CONTROLS:
            raise UsageError(f"unknown controls {sorted(unknown)}; known: {sorted(CONTROLS)}")
        super().__init__(profile, _Rules(profile, frozenset(without)), without)


class _Rules:
    def __init__(self, profile: Profile, without: frozenset[str]) -> None:
        if sys.platform != "linux":
            raise UsageError("`landlock` needs Linux; use `monty` or `docker`")
        if profile.seccomp is None:
            raise UsageError("a `landlock` profile needs a filter: put `seccomp.json` beside it")
        self._profile, self._without = profile, without
        self._filter = read_filter(profile.seccomp)
        self.own_user = os.geteuid() == 0 and "user" not in without

    @contextmanager
    def raised(self) -> Iterator[Start]:
        """A folder, descriptors and a control group."""
        own, uid = interpreter(), secrets.choice(UIDS) if self.own_user else 0
        with ExitStack() as stack:
            place = stack.enter_context(folder("landlock", open_place() if uid else None))
            if uid:
                os.chown(place, uid, uid)
            limits = stack.enter_context(group(self._profile))
            filter = stack.enter_context(read_from(self._filter))
            prefix, environment = os.fspath(own.prefix), dict[str, str]()
            descriptors = [filter]
            if uid and not open_to_all(own.executable, own.stdlib):
                descriptors.append(held := os.open(own.prefix, os.O_PATH | os.O_DIRECTORY))
                stack.callback(os.close, held)
                prefix = f"/proc/self/fd/{held}"
                environment = {"LD_LIBRARY_PATH": f"{prefix}/lib"}
            program = f"{prefix}/{own.executable.relative_to(own.prefix)}"
            seen = [*map(os.fspath, own.paths()), *(["/proc/self/fd"] if environment else [])]
            joined = "cgroup" not in self._without and limits.made
            yield Start(
                (os.fspath(own.executable), "-I", "-S", "-B", "-c", SOURCE, str(filter),
                 str(uid), place, *seen, "--", program),
                descriptors=tuple(descriptors),
                environment=os.environ if "environment" in self._without else environment,
                joined=limits.join if joined else lambda pid: None,
                verdict=lambda: "MemoryError: out of memory" if limits.out_of_memory() else "",
            )  # fmt: skip
