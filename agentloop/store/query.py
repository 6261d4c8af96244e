"""What goes into the log, what comes out of it, and which of it: plain data and its SQL.

A `Query` is data, so a command line, a workflow file and a test can all write one. Values only
ever reach SQLite as parameters.
"""

from __future__ import annotations

from typing import TypeAlias

from agentloop.records import Json, Purpose, record

Fence: TypeAlias = tuple[str, int]
"""(name of a lease, token that its holder was given)."""


@record
class Draft:
    """An entry to be: (`kind`, `key`) names it for good."""

    kind: str
    key: str
    body: Json
    scope: str = ""
    """Whose it is, usually the name of a workflow."""
    at: float | None = None
    """Unix seconds; `None` is now."""


@record
class Entry:
    """One row of the log; `seq` counts from 1 without gaps and is the order of the log."""

    seq: int
    kind: str
    key: str
    scope: str
    at: float
    body: Json


@record
class Query:
    """Which entries, in log order. The fields from `purpose` on choose episodes."""

    kinds: tuple[str, ...] = ()
    """Empty is every kind."""
    prefix: str = ""
    """What the key begins with."""
    scope: str | None = None
    since_seq: int = 0
    """Entries after this one."""
    until: int | None = None
    """Entries up to and including this one."""
    limit: int | None = None
    purpose: Purpose | None = None
    family: str | None = None
    bundle: str | None = None
    task: str | None = None
    run: str | None = None
    success: bool | None = None
    """By the latest score; an unscored episode is neither."""


_FACTS = ("purpose", "family", "bundle", "task", "run", "success")
_ENTRY = "{0}.seq, {0}.kind, {0}.key, {0}.scope, {0}.at, {0}.body"


def select(query: Query, *, after: int, page: int, scored: bool) -> tuple[str, list[object]]:
    """SQL and parameters of the next `page` rows after `after`; when `scored`, the columns of the
    latest score follow those of each entry (NULL where there is none)."""
    where = ["entry.seq > ?"]
    values: list[object] = [after, *query.kinds]
    if query.kinds:
        where.append(f"entry.kind IN ({', '.join('?' * len(query.kinds))})")
    if query.prefix:
        where.append("entry.key >= ? AND entry.key < ?")
        values += [query.prefix, query.prefix + "\U0010ffff"]
    if query.scope is not None:
        where.append("entry.scope = ?")
        values.append(query.scope)
    if query.until is not None:
        where.append("entry.seq <= ?")
        values.append(query.until)
    columns, tables, joined = _ENTRY.format("entry"), "entry", scored
    for name, value in zip(_FACTS, _facts(query), strict=True):
        if value is not None:
            where.append(f"fact.{name} = ?")
            values.append(value)
            joined = True
    if joined:
        tables += " LEFT JOIN episode_fact AS fact ON fact.seq = entry.seq"
    if scored:
        columns += ", " + _ENTRY.format("score")
        tables += " LEFT JOIN entry AS score ON score.seq = fact.score_seq"
    sql = f"SELECT {columns} FROM {tables} WHERE {' AND '.join(where)} ORDER BY entry.seq LIMIT ?"
    return sql, [*values, page]


def _facts(query: Query) -> tuple[object, ...]:
    return (query.purpose, query.family, query.bundle, query.task, query.run, query.success)
