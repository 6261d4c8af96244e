"""How far the log came, beside it: 48 bytes in `log.head`, for what the log cannot tell of itself.

Entries that are cut off the end leave a shorter chain that is whole, as does a `log.db-wal` that
was removed. Written after each commit and never synced, so it may lag behind the log after a crash
and is never ahead of it. Where it says more than the log has, it is left as it is: what is appended
later must not wipe it out. It is a witness and no part of the log: without it nothing is lost.
"""

from __future__ import annotations

import hashlib
import os
import struct
from contextlib import suppress
from pathlib import Path

_FORM = struct.Struct(">q32s8s")


class Head:
    """The witness beside the log at `path`."""

    def __init__(self, path: Path, *, closed: bool = False) -> None:
        """A `closed` one is not written to."""
        self.path = beside(path)
        self._file = -1
        if closed:
            return
        with suppress(OSError):  # a witness that cannot be called does not stop the writing
            self._file = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)

    def note(self, seq: int, digest: bytes) -> None:
        """The last entry is `seq` and its hash `digest`."""
        if self._file >= 0:
            with suppress(OSError):
                os.pwrite(self._file, _FORM.pack(seq, digest, _check(seq, digest)), 0)

    def close(self) -> None:
        """Let go of the file; idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def beside(path: Path) -> Path:
    """Where the witness of the log at `path` is."""
    return path.with_suffix(".head")


def read(path: Path) -> tuple[int, bytes] | None:
    """(seq, hash) of the entry that was the last of the log at `path`; `None` when nobody knows."""
    try:
        seq, digest, check = _FORM.unpack(beside(path).read_bytes())
    except (OSError, struct.error):
        return None
    return (seq, digest) if check == _check(seq, digest) else None


def _check(seq: int, digest: bytes) -> bytes:
    return hashlib.blake2b(struct.pack(">q", seq) + digest, digest_size=8).digest()
