"""A database file in, the same data under the present schema out.

Steps are numbered and never change once released; the names of those applied are stored in the
file, so a file from a newer release is recognised and refused.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence

from agentloop.errors import StoreError
from agentloop.store import facts
from agentloop.store.chain import unpack
from agentloop.store.sqlite import writing

_ENTRY = """
CREATE TABLE entry (
  seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, key TEXT NOT NULL, scope TEXT NOT NULL,
  at REAL NOT NULL, body BLOB NOT NULL, prev BLOB NOT NULL, hash BLOB NOT NULL, UNIQUE (kind, key)
)
"""
_LEASE = """
CREATE TABLE lease (name TEXT PRIMARY KEY, token INTEGER NOT NULL, holder TEXT, expires REAL)
"""


def entry(db: sqlite3.Connection) -> None:
    """1: the chain of entries, and leases (mutable, not chained)."""
    db.execute(_ENTRY)
    db.execute("CREATE INDEX entry_kind ON entry (kind)")
    db.execute(_LEASE)


def episode_fact(db: sqlite3.Connection) -> None:
    """2: what episodes are looked up by, filled from the entries."""
    db.execute(facts.TABLE)
    for index in facts.INDICES:
        db.execute(index)
    rows = db.execute(
        "SELECT seq, kind, key, scope, body FROM entry WHERE kind IN ('episode', 'score')"
        " ORDER BY seq"
    )
    for seq, kind, key, scope, body in rows:
        facts.note(db, seq, (kind, key, scope, unpack(body)))


def episode_order(db: sqlite3.Connection) -> None:
    """3: the samples of one task, and a run, found in log order without a walk or a sort."""
    db.execute("DROP INDEX episode_fact_run")
    db.execute("CREATE INDEX episode_fact_run ON episode_fact (run, seq)")
    db.execute("CREATE INDEX episode_fact_task ON episode_fact (task, run, seq)")


STEPS: tuple[Callable[[sqlite3.Connection], None], ...] = (entry, episode_fact, episode_order)
VERSION = len(STEPS)


def migrate(db: sqlite3.Connection, steps: Sequence[Callable[..., None]] = STEPS) -> None:
    """Apply the steps that the file lacks, all or none. Raises `StoreError` when the file has one
    that this release does not know."""
    names = [step.__name__ for step in steps]
    if _applied(db) == names:
        return  # the usual case takes no write lock
    with writing(db):
        db.execute(
            "CREATE TABLE IF NOT EXISTS migration"
            " (number INTEGER PRIMARY KEY, name TEXT NOT NULL, at REAL NOT NULL)"
        )
        done = _applied(db)
        if done != names[: len(done)]:
            raise StoreError(
                f"the log has schema version {len(done)} (`{done[-1]}`), this release of agentloop "
                f"knows version {len(names)} (`{names[-1]}`); run: pip install --upgrade agentloop"
            )
        for number, step in list(enumerate(steps, 1))[len(done) :]:
            step(db)
            db.execute(
                "INSERT INTO migration VALUES (?, ?, ?)", (number, step.__name__, time.time())
            )


def _applied(db: sqlite3.Connection) -> list[str]:
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'migration'").fetchone():
        return []
    return [name for (name,) in db.execute("SELECT name FROM migration ORDER BY number")]
