"""A path in, a SQLite connection with the settings of the log out; errors typed.

`synchronous=FULL` is what makes an acknowledged commit survive a power cut in WAL mode; `NORMAL`
may lose it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentloop.errors import StoreError

BUSY_MS = 30_000
"""How long a writer waits for another process's commit."""


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Errors of SQLite and of the system become `StoreError`."""
    try:
        yield
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
        if isinstance(error, sqlite3.Error) and "full" in str(error):
            step = "free some space and go on; nothing acknowledged is lost"
        else:
            step = "see: agentloop store verify"
        raise StoreError(f"the log `{path}` cannot be used: {error}; {step}") from error


def connect(path: Path) -> sqlite3.Connection:
    """Open `path`, made with mode 0600 when it is not there. Raises what SQLite raises."""
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name itself must survive a power cut
        finally:
            os.close(folder)
    # The log's threads take turns by locks of its own.
    db = sqlite3.connect(
        path, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False
    )
    try:
        for pragma in (
            f"busy_timeout={BUSY_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON",
            "trusted_schema=OFF", "cell_size_check=ON",
        ):  # fmt: skip
            db.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def writing(db: sqlite3.Connection) -> Iterator[None]:
    """One transaction that writes, alone from its first statement on."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite itself rolls back on some errors
            db.execute("ROLLBACK")
        raise
