"""Skill folders on the disk: a folder in, the bytes of its files out, and back.

Reading goes by directory handles and never through a link, so that what is looked at is what is
read, whatever is renamed meanwhile; pipes, devices and sockets are not opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from agentloop.errors import UsageError
from agentloop.files import new_directory
from agentloop.skills.paths import MAX_FILE, MAX_FILES, check_path, collect, skipped

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_ENTRIES = 8 * MAX_FILES
"""Names that one folder may have: those that are passed over count too."""


def read_folder(path: Path) -> dict[str, bytes]:
    """The files below `path` by relative path. Raises `UsageError` that names what is no plain
    file, has a bad name, is too much, or cannot be read."""
    try:
        with _opened(os.open(path, _FOLDER)) as root:
            return collect(_walk(root, ""))
    except NotADirectoryError as error:  # what the system says of a link as well
        kind = "a link" if path.is_symlink() else "not a folder"
        raise UsageError(f"`{path}` is {kind}; give the folder itself") from error
    except OSError as error:
        raise UsageError(f"`{path}` cannot be read: {error.strerror}") from error


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder `path` with these files, whole or not at all. Raises `UsageError` for a bad
    name, `FileExistsError` when `path` is there, `StoreError` when it cannot be written."""
    files = collect(files.items())
    with new_directory(path) as draft:
        for name, data in files.items():
            target = draft / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        draft.chmod(0o755)  # made for us alone, as all drafts are


@contextmanager
def _opened(handle: int) -> Iterator[int]:
    try:
        yield handle
    finally:
        os.close(handle)


def _walk(folder: int, prefix: str) -> Iterator[tuple[str, bytes]]:
    names = sorted(os.listdir(folder))
    if len(names) > _MAX_ENTRIES:
        raise UsageError(f"`{prefix or '.'}` has {len(names)} entries; at most {_MAX_ENTRIES}")
    for name in names:
        if skipped(name):
            continue
        path = check_path(prefix + name)
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            with _opened(os.open(name, _FOLDER, dir_fd=folder)) as inner:
                yield from _walk(inner, f"{path}/")
        elif stat.S_ISREG(mode):
            yield path, _read(folder, name)
        else:
            kind = "a link" if stat.S_ISLNK(mode) else "no plain file"
            raise UsageError(f"`{path}` is {kind}; put the file itself in its place")


def _read(folder: int, name: str) -> bytes:
    with open(os.open(name, _FILE, dir_fd=folder), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # exchanged since it was looked at
            raise UsageError(f"`{name}` is no plain file; put the file itself in its place")
        return file.read(MAX_FILE + 1)
