"""How far the index has come and what its vector files looked like then: `mark.json` beside them.

Replaced atomically, so a reader sees the state before or after a drain and nothing between.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agentloop.errors import StoreError
from agentloop.trajectories.codec import from_json

KINDS = ("episode", "skill", "instruction")
"""What is indexed."""


@dataclass
class Mark:
    """What has been indexed: `folder` holds the log up to `seq`, `rows` entries per kind."""

    folder: str
    seq: int = 0
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    files: dict[str, str] = field(default_factory=dict)
    """Digests of the vector files."""


def published(index: Path) -> Mark | None:
    """The mark of an index, `None` when it is missing, not readable, or names no folder."""
    try:
        mark = from_json(Mark, json.loads((index / "mark.json").read_bytes()))
    except (OSError, ValueError, StoreError):
        return None
    known = set(mark.rows) == set(KINDS) and (index / mark.folder) in folders(index)
    return mark if known else None


def folders(index: Path) -> dict[Path, int]:
    """The Chroma folders of an index and their numbers. Raises `StoreError`."""
    try:
        found = {path: path.name.partition("-")[2] for path in index.glob("chroma-*")}
    except OSError as error:
        raise StoreError(f"the index `{index}` cannot be read: {error}") from error
    return {path: int(number) for path, number in found.items() if number.isdecimal()}


def publish(index: Path, mark: Mark) -> None:
    """Replace the mark of an index; it is on the disk when this returns. Raises `StoreError`."""
    new = index / "mark.json.new"
    try:
        with open(new, "w") as file:
            json.dump(vars(mark), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, index / "mark.json")
        folder = os.open(index, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreError(f"the index `{index}` cannot be written: {error}") from error


@contextmanager
def locked(index: Path, how: int, seconds: float) -> Iterator[bool]:
    """Whether this process got the lock of an index (`fcntl.LOCK_EX` or `LOCK_SH`) within
    `seconds`; the system frees it on any death. Raises `StoreError` when it cannot be opened."""
    deadline = time.monotonic() + seconds
    try:
        lock = open(index / "lock", "a")  # noqa: SIM115 (closed below, by name)
    except OSError as error:
        raise StoreError(f"the index `{index}` cannot be locked: {error}") from error
    with lock as file:
        while True:
            try:
                fcntl.flock(file, how | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(0.05)
        yield True


def digests(folder: Path) -> dict[str, str]:
    """Digest per vector file of a Chroma folder; its SQLite file checks itself.

    A segment that Chroma has not written out yet is passed over: it has no metadata file, Chroma
    makes its files anew whenever it is opened (`length.bin` then holds whatever was in memory), and
    its vectors are in SQLite. Raises `StoreError` when one cannot be read.
    """
    found = {}
    try:
        written = {path.parent for path in folder.glob("*/index_metadata.pickle")}
        for path in sorted(path for segment in written for path in segment.iterdir()):
            with open(path, "rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(
                    file, lambda: hashlib.blake2b(digest_size=16)
                ).hexdigest()
    except OSError as error:
        raise StoreError(f"the index `{folder.parent}` cannot be read: {error}") from error
    return found
