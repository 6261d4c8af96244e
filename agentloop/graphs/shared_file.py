"""A file that several processes append to, one at a time.

In: its path; out: a descriptor under the file's lock. Decision: it stays open between appends,
because opening costs more than writing, and is opened anew once somebody removed it.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class SharedFile:
    """Not thread-safe. The methods raise `OSError`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def lock(self) -> tuple[int, int]:
        """Wait for the lock; the file, made if need be, and its size in bytes."""
        while True:
            if self._descriptor is None:
                flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
                self._descriptor = os.open(self._path, flags, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            found = os.fstat(self._descriptor)
            if found.st_nlink:
                return self._descriptor, found.st_size
            self.close()  # somebody removed it

    def unlock(self) -> None:
        """Let others append."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give up the descriptor and the lock; idempotent. `lock` opens the file again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.close()
