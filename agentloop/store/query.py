"""What goes into the log, what comes out of it, and which of it: plain data and its SQL.

A `Query` is data, so a command line, a workflow file and a test can all write one. Values only
ever reach SQLite as parameters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypeAlias

from agentloop.records import Json, Purpose, record

Fence: TypeAlias = tuple[str, int]
"""(name of a lease, token that its holder was given)."""
Fences: TypeAlias = Fence | tuple[Fence, ...]
"""One, or several that must all be good."""


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
    """Which entries, in log order unless `newest`. The fields from `purpose` on choose episodes."""

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
    newest: bool = False
    """Last entry first, so that `limit` takes the latest."""
    purpose: Purpose | None = None
    family: str | None = None
    bundle: str | None = None
    task: str | None = None
    run: str | None = None
    success: bool | None = None
    """By the latest score; an unscored episode is neither."""


_FACTS = ("purpose", "family", "bundle", "task", "run", "success")
_ENTRY = "{0}.seq, {0}.kind, {0}.key, {0}.scope, {0}.at, {0}.body"


def select(
    query: Query, *, page: int, after: int | None = None, scored: bool = False
) -> tuple[str, list[object]]:
    """SQL and parameters of the next `page` rows, those that follow `after` in the order asked for;
    when `scored`, the columns of the latest score follow those of each entry (NULL where there is
    none)."""
    # One task or one run is little of the log: begin at its facts, whose index is in log order.
    few = query.task is not None or query.run is not None
    seq = "fact.seq" if few else "entry.seq"
    tables, where, values = _chosen(query, facts_first=few, scored=scored)
    columns = _ENTRY.format("entry")
    if after is not None:
        where.append(f"{seq} {'<' if query.newest else '>'} ?")
        values.append(after)
    if scored:
        columns += ", " + _ENTRY.format("score")
        tables += " LEFT JOIN entry AS score ON score.seq = fact.score_seq"
    order = f"{seq} DESC" if query.newest else seq
    sql = f"SELECT {columns} FROM {tables} WHERE {' AND '.join(where)} ORDER BY {order} LIMIT ?"
    return sql, [*values, page]


def names(query: Query, among: Sequence[str] | None) -> tuple[str, list[object]]:
    """SQL and parameters of the keys that `query` chooses, of those in `among` unless `None`."""
    tables, where, values = _chosen(query, facts_first=among is None)
    if among is not None:
        where.append("entry.key IN (SELECT value FROM json_each(?))")
        values.append(json.dumps(among))
    return f"SELECT entry.key FROM {tables} WHERE {' AND '.join(where)}", values


def _chosen(
    query: Query, *, facts_first: bool, scored: bool = False
) -> tuple[str, list[str], list[object]]:
    """Tables, conditions and their values. CROSS JOIN is SQLite's way to fix the order of a join:
    without statistics its planner would walk all episodes."""
    given = {
        name: value for name, value in zip(_FACTS, _facts(query), strict=True) if value is not None
    }
    if facts_first and query.scope is not None and query.kinds == ("episode",):
        given["scope"] = query.scope  # the facts of an episode have it too
    if given and facts_first:
        tables = "episode_fact AS fact CROSS JOIN entry ON entry.seq = fact.seq"
        seq = "fact.seq"
    else:
        side = "JOIN" if given else "LEFT JOIN"
        joined = f" {side} episode_fact AS fact ON fact.seq = entry.seq" if given or scored else ""
        tables, seq = "entry" + joined, "entry.seq"
    where = [f"{seq} > ?", *(f"fact.{name} = ?" for name in given)]
    values: list[object] = [query.since_seq, *given.values()]
    if query.kinds:
        where.append(f"entry.kind IN ({', '.join('?' * len(query.kinds))})")
        values += query.kinds
    if query.prefix:
        where.append("entry.key >= ? AND entry.key < ?")
        values += [query.prefix, query.prefix + "\U0010ffff"]
    if query.scope is not None:
        where.append("entry.scope = ?")
        values.append(query.scope)
    if query.until is not None:
        where.append(f"{seq} <= ?")
        values.append(query.until)
    return tables, where, values


def _facts(query: Query) -> tuple[object, ...]:
    return (query.purpose, query.family, query.bundle, query.task, query.run, query.success)
