"""Entries in, rows of `episode_fact` out: what episodes are looked up by.

The table is derived: `rebuild` makes it again from the entries. An episode and its scores may
arrive in either order (several processes append), so each fills in its own columns of one row.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from agentloop.errors import StoreError
from agentloop.records import Json

TABLE = """
CREATE TABLE episode_fact (
  id TEXT PRIMARY KEY, seq INTEGER UNIQUE, scope TEXT, purpose TEXT, task TEXT, family TEXT,
  bundle TEXT, run TEXT, success INTEGER, score_seq INTEGER
) WITHOUT ROWID
"""
INDICES = (
    "CREATE INDEX episode_fact_choice"
    " ON episode_fact (scope, purpose, success, task, family, bundle)",
    "CREATE INDEX episode_fact_run ON episode_fact (run)",
)
_EPISODE = """
INSERT INTO episode_fact (seq, id, scope, purpose, task, family, bundle, run, success)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET seq = excluded.seq, scope = excluded.scope,
  purpose = excluded.purpose, task = excluded.task, family = excluded.family,
  bundle = excluded.bundle, run = excluded.run, success = coalesce(success, excluded.success)
"""
_SCORE = """
INSERT INTO episode_fact (score_seq, id, success) VALUES (?, ?, ?)
ON CONFLICT (id) DO UPDATE SET success = excluded.success, score_seq = excluded.score_seq
"""


def statement(kind: str, key: str, scope: str, body: Any) -> tuple[str, tuple[object, ...]] | None:
    """The SQL that notes an entry and its parameters after the first, which is the entry's seq;
    `None` when it is neither an episode nor a score. Raises `StoreError` on a wrong shape."""
    try:
        if kind == "episode":
            task, score = body["task"], body.get("score")
            return _EPISODE, (
                key, scope, body["purpose"], task["id"], task.get("family", "default"),
                body["bundle"], body["run"], None if score is None else bool(score["success"]),
            )  # fmt: skip
        if kind == "score":
            return _SCORE, (body["episode"], bool(body["score"]["success"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"`{key}` does not have the shape of kind `{kind}`: {error!r}") from error
    return None


def storable(kind: str, key: str, scope: str, body: Any) -> tuple[str, tuple[object, ...]] | None:
    """`statement` of an entry that SQLite takes. Raises `StoreError` on a wrong shape, `ValueError`
    on a name with a lone surrogate (a body may have them)."""
    found = statement(kind, key, scope, body)
    for value in (kind, key, scope, *(found[1] if found else ())):
        if isinstance(value, str):
            value.encode()
    return found


def note(db: sqlite3.Connection, seq: int, entry: tuple[str, str, str, Json]) -> None:
    """Note one entry, given as (kind, key, scope, body)."""
    found = statement(*entry)
    if found is not None:
        db.execute(found[0], (seq, *found[1]))
