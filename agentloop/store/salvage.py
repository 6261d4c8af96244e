"""What is still whole of a damaged log, as a new log: its longest valid prefix, byte by byte.

Goes in: a home whose log does not verify. Comes out: a new home with every entry before the first
one that is damaged or missing, with the same numbers and hashes. The damaged files are only read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agentloop.errors import StoreError
from agentloop.store import facts, head
from agentloop.store.chain import GENESIS, link, unpack
from agentloop.store.migrations import migrate
from agentloop.store.pages import Cell, Pages, Row, open_pages
from agentloop.store.sqlite import connect, guarded, writing

_INSERT = (
    "INSERT INTO entry (seq, kind, key, scope, at, body, prev, hash)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


@dataclass(frozen=True)
class Salvaged:
    """How much was kept; `beyond` rows after the first bad one still stand in the file, but nothing
    says that they belong there."""

    rows: int
    beyond: int


def prefix(path: Path) -> Iterator[Row]:
    """The entries of the log at `path` from the first on, as long as each is there and its hash
    covers the one before it. Raises `StoreError` when the file cannot be read."""
    return _prefix(*_open(path))


def _prefix(pages: Pages, places: dict[int, list[Cell]]) -> Iterator[Row]:
    before, seq = GENESIS, 1
    while True:
        rows = (row for cell in places.get(seq, ()) for row in pages.row(cell))
        row = next((row for row in rows if _fits(row, before)), None)
        if row is None:
            return
        yield row
        before, seq = row[7], seq + 1


def salvage(path: Path, target: Path) -> Salvaged:
    """Write the valid prefix of the log at `path` as a new log at `target`. Raises `StoreError`
    when there is one already, or the disk refuses."""
    if target.exists():
        raise StoreError(f"`{target}` exists; give a new home to salvage into")
    pages, places = _open(path)
    last, count = GENESIS, 0
    with guarded(target):
        db = connect(target)
        try:
            migrate(db)
            with writing(db):
                for row in _prefix(pages, places):
                    db.execute(_INSERT, row)
                    facts.note(db, row[0], (*row[1:4], unpack(row[5])))
                    last, count = row[7], row[0]
        finally:
            db.close()
    witness = head.Head(target)
    witness.note(count, last)
    witness.close()
    return Salvaged(rows=count, beyond=sum(seq > count for seq in places))


def _open(path: Path) -> tuple[Pages, dict[int, list[Cell]]]:
    try:
        pages = open_pages(path)
    except OSError as error:
        raise StoreError(f"`{path}` cannot be read: {error.strerror}") from error
    return pages, pages.places()


def _fits(row: Row, before: bytes) -> bool:
    seq, kind, key, scope, at, body, prev, digest = row
    if prev != before or digest != link(prev, seq, (kind, key, scope), at, body):
        return False
    try:
        facts.statement(kind, key, scope, unpack(body))
    except StoreError:
        return False
    return True
