"""Full Python behind `bubblewrap`: namespaces, no rights, a filter of calls, limits on everything.

In: a profile with a filter (`seccomp.json`). Out: a sandbox whose code sees an interpreter and an
empty disk of its own, and nothing else of this machine. The command is built in three steps, each
of which becomes the next: `unshare` gives a private view of the mounts, a short shell script puts
the interpreter and a disk with limits where any user can reach them (the interpreter may lie under
`/root`, and `bwrap` itself cannot limit the number of files), and `bwrap` raises the walls. Root
becomes a user without rights first. Residual risk: it is one kernel, shared.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from agentloop.errors import MissingDependency, SandboxError, UsageError
from agentloop.sandboxes.cgroups import group
from agentloop.sandboxes.egress import ENVIRONMENT, INSIDE, Broker, broker
from agentloop.sandboxes.interpreter import Interpreter, interpreter
from agentloop.sandboxes.launched import Launched, Start
from agentloop.sandboxes.profile import Profile
from agentloop.sandboxes.seccomp import read_filter

CONTROLS = frozenset({
    "environment", "userns", "seccomp", "cgroup", "readonly", "rlimits", "capabilities", "network",
    "disk", "user",
})  # fmt: skip
"""What `without` can leave out, each alone, to show that it matters."""
CLAIMS = frozenset({
    "files", "devices", "environment", "descriptors", "processes", "ipc", "network", "families",
    "mounts", "namespaces", "privileges", "syscalls", "memory", "pids", "disk", "cpu", "time",
    "survivors", "output",
})  # fmt: skip
"""The properties (`attacks.Attempt.attacks`) that hold. Of several processes together, `memory` and
`cpu` need a control group, which root and users with one of their own can make."""
FILES = 16384
"""Files and folders on its disk at most."""
UIDS = range(61000, 62000)
"""Of which root takes one for each run: runs cannot signal each other and are counted apart."""
NOBODY = "65534"
"""Who the code finds itself to be."""
_PLACES = ("/mnt", "/media", "/srv", "/tmp")
STAGE = """
mount -t tmpfs -o size=64k,mode=755 tmpfs "$1"
mkdir "$1/python" "$1/disk"
mount --rbind "$2" "$1/python"
mount -t tmpfs -o "$3,mode=755,nosuid,nodev" tmpfs "$1/disk"
mkdir -m 1777 "$1/disk/work" "$1/disk/tmp" "$1/disk/shm"
shift 3
exec "$@"
"""
"""The middle step: a place, the interpreter's prefix, the disk's limits, the command to become."""


class BwrapSandbox(Launched):
    """A sandbox of namespaces. `without` leaves controls out: for tests that show what each does.

    Raises `MissingDependency` without `bwrap`, `UsageError` for a profile without a filter or for
    an unknown control.
    """

    claims = CLAIMS

    def __init__(self, profile: Profile, without: Collection[str] = ()) -> None:
        if unknown := set(without) - CONTROLS:
            raise UsageError(f"unknown controls {sorted(unknown)}; known: {sorted(CONTROLS)}")
        super().__init__(profile, _Namespaces(profile, frozenset(without)), without)


class _Namespaces:
    own_user = True

    def __init__(self, profile: Profile, without: frozenset[str]) -> None:
        self._profile, self._without = profile, without
        self._tools = tools()
        if profile.seccomp is None:
            raise UsageError("a `bwrap` profile needs a filter: put `seccomp.json` beside it")
        self._filter = read_filter(profile.seccomp)

    @contextmanager
    def raised(self) -> Iterator[Start]:
        """Descriptors and a control group; all else lives and dies with the process."""
        own = interpreter()
        with (
            group(self._profile) as limits,
            read_from(self._filter) as descriptor,
            ExitStack() as way,
        ):
            joined = "cgroup" not in self._without and limits.made
            out = way.enter_context(broker(self._profile)) if self._profile.egress else None
            yield Start(
                self.command(own, descriptor, out),
                descriptors=(descriptor,),
                environment=os.environ if "environment" in self._without else {},
                joined=limits.join if joined else lambda pid: None,
                verdict=lambda: "MemoryError: out of memory" if limits.out_of_memory() else "",
            )

    def command(
        self, own: Interpreter, descriptor: int, out: Broker | None = None
    ) -> tuple[str, ...]:
        """All three steps, up to and with the interpreter."""
        root, without = os.geteuid() == 0, self._without
        unshare, shell, setpriv, bwrap = self._tools
        place = next(
            (one for one in _PLACES if os.path.isdir(one) and not own.prefix.is_relative_to(one)),
            "",
        )
        if not place:
            raise SandboxError(f"none of {', '.join(_PLACES)} is a folder that can be covered")
        disk = f"size={self._profile.disk_mb}m,nr_inodes={FILES}"
        if "disk" in without:
            disk = "size=0"
        as_user = () if root else ("--user", "--map-root-user")
        stage = (unshare, *as_user, "--mount", shell, "-ec", STAGE, "sh", place, str(own.prefix))
        uid = str(secrets.choice(UIDS))
        drop = (setpriv, "--reuid", uid, "--regid", uid, "--clear-groups", "--no-new-privs")
        return (
            *stage, disk,
            *(drop if root and "user" not in without else ()),
            bwrap, *self._namespaces(descriptor), *_view(own, place), *_way(out),
            *(() if "readonly" in without else ("--remount-ro", "/dev", "--remount-ro", "/")),
            "--chdir", "/work", str(own.executable),
        )  # fmt: skip

    def _namespaces(self, descriptor: int) -> tuple[str, ...]:
        without = self._without
        return (
            "--unshare-all", "--unshare-user",
            *(() if "userns" in without else ("--disable-userns",)),
            *(("--share-net",) if "network" in without else ()),
            "--uid", NOBODY, "--gid", NOBODY,
            *(("--cap-add",) if "capabilities" in without else ("--cap-drop",)), "ALL",
            *(() if "environment" in without else ("--clearenv",)),
            *(() if "seccomp" in without else ("--seccomp", str(descriptor))),
            "--new-session", "--die-with-parent", "--hostname", "sandbox",
        )  # fmt: skip


def _view(own: Interpreter, place: str) -> tuple[str, ...]:
    """What there is to see: the interpreter, a few devices, an empty disk."""
    seen: list[str] = []
    for path in own.paths():
        inside = path.is_relative_to(own.prefix)
        source = Path(place, "python", path.relative_to(own.prefix)) if inside else path
        seen += ["--ro-bind", str(source), str(path)]
    if own.packages:
        seen += ["--size", "4096", "--tmpfs", str(own.packages)]
        seen += ["--remount-ro", str(own.packages)]
    seen += ["--proc", "/proc", "--dev", "/dev"]
    for name, at in (("work", "/work"), ("tmp", "/tmp"), ("shm", "/dev/shm")):
        seen += ["--bind", f"{place}/disk/{name}", at]
    return tuple(seen)


def _way(out: Broker | None) -> tuple[str, ...]:
    """The way out, where there is one."""
    if out is None:
        return ()
    told = [word for item in ENVIRONMENT.items() for word in ("--setenv", *item)]
    return ("--ro-bind", str(out.place), INSIDE, *told)


@cache
def tools() -> tuple[str, str, str, str]:
    """Where `unshare`, `sh`, `setpriv` and `bwrap` are."""
    if sys.platform != "linux":
        raise UsageError("`bwrap` needs Linux; use `monty` or `docker`")
    found = [shutil.which(name, path=os.defpath) for name in ("unshare", "sh", "setpriv", "bwrap")]
    if missing := [name for name, at in zip(_PACKAGES, found, strict=True) if not at]:
        raise MissingDependency(missing[0], f"apt-get install {_PACKAGES[missing[0]]}")
    unshare, shell, setpriv, bwrap = found
    assert unshare and shell and setpriv and bwrap
    return unshare, shell, setpriv, bwrap


_PACKAGES = {"unshare": "util-linux", "sh": "dash", "setpriv": "util-linux", "bwrap": "bubblewrap"}


@contextmanager
def read_from(data: bytes) -> Iterator[int]:
    """A descriptor that gives `data` to who reads it."""
    descriptor = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)
