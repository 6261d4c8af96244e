"""A container image with this machine's own Python: no registry is asked for anything.

In: a Docker client. Out: the name of an image that holds the interpreter, its standard library and
the shared libraries these are linked with, at the paths they have here, and nothing else: no shell,
no package manager, no other user's files. It is made once per interpreter and kept by the engine.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from agentloop.errors import SandboxError
from agentloop.sandboxes.interpreter import interpreter

REPOSITORY = "agentloop-python"
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo",
            "ensurepip", "lib2to3"}  # fmt: skip
"""Folders of the standard library that no sandboxed program needs."""


def host_image(client: Any) -> str:
    """The image's name; made if the engine has it not yet. Raises `SandboxError`."""
    tag = _tag()
    if not client.images.list(f"{REPOSITORY}:{tag}"):
        with tempfile.NamedTemporaryFile(suffix=".tar") as file:
            _pack(_files(), file.name)
            client.api.import_image_from_file(file.name, repository=REPOSITORY, tag=tag)
    return f"{REPOSITORY}:{tag}"


@cache
def _tag() -> str:
    """Version and content, as sizes and times tell it."""
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in _files()]
    return f"{platform.python_version()}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"


@cache
def _files() -> tuple[Path, ...]:
    own = interpreter()
    found = {own.executable}
    for folder, folders, names in os.walk(own.stdlib):
        folders[:] = [name for name in folders if name not in LEFT_OUT and name[:7] != "config-"]
        found |= {path for name in names if (path := Path(folder, name)).is_file()}
    modules = [path for path in found if path.suffix == ".so"]
    return tuple(sorted(found.union(_linked([own.executable, *modules]))))


def _linked(programs: list[Path]) -> Iterable[Path]:
    """The shared libraries that these are linked with, and the loader."""
    try:
        told = subprocess.run(
            ["ldd", *programs], env={"PATH": os.defpath}, capture_output=True, text=True,
            timeout=60, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxError(f"the libraries of `{programs[0]}` cannot be listed: {error}") from error
    return map(Path, re.findall(r"(/\S+) \(0x", told))


def _pack(files: tuple[Path, ...], to: str) -> None:
    """One archive: every folder for all to read, every file the content of what it points to."""
    folders = {parent for path in files for parent in path.parents} - {Path("/")}
    with tarfile.open(to, "w") as archive:
        for folder in sorted(folders):
            entry = tarfile.TarInfo(str(folder).lstrip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for path in files:
            entry = tarfile.TarInfo(str(path).lstrip("/"))
            status = path.stat()
            entry.size, entry.mtime = status.st_size, int(status.st_mtime)
            entry.mode = 0o755 if status.st_mode & 0o111 else 0o644
            with path.open("rb") as file:
                archive.addfile(entry, file)
