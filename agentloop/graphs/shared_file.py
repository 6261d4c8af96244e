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
        self._process = 0

    def lock(self) -> tuple[int, os.stat_result]:
        """Wait for the lock; the file of this name, made if need be, and what it is now."""
        while True:
            file = self._opened()
            fcntl.flock(file, fcntl.LOCK_EX)
            found = os.fstat(file)
            try:
                if os.path.samestat(found, os.stat(self._path)):
                    return file, found
            except FileNotFoundError:
                pass
            self.close()  # somebody removed or replaced it

    def _opened(self) -> int:
        # A lock belongs to what was opened, which a process shares with those forked from it.
        if self._descriptor is None or self._process != os.getpid():
            self.close()
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            self._process = os.getpid()
        return self._descriptor

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
