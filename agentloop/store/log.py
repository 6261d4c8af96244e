"""The truth: drafts in, entries out, in one order, for good.

A SQLite file in WAL mode that any process appends to. An append returns when its rows are on the
disk. Within a process one thread writes at a time, for all: appends that wait while it commits
share the next commit, so many concurrent tasks pay for one fsync, and the event loop for none.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from agentloop.errors import StoreError
from agentloop.store import facts, head, leases
from agentloop.store.chain import GENESIS, audit, ending, link, pack, unpack
from agentloop.store.migrations import migrate
from agentloop.store.query import Draft, Entry, Fences, Query, names, select
from agentloop.store.sqlite import connect, guarded, writing
from agentloop.trajectories.redact import Redactor

T = TypeVar("T")
_GROUP = 256
"""Appends that share a commit; keeps one transaction short."""
_PAGE = 200
"""Rows read at a time; no read transaction stays open between pages."""


@dataclass(slots=True)
class _Packed:
    names: tuple[str, str, str]
    at: float
    body: bytes
    fact: tuple[str, tuple[object, ...]] | None


@dataclass(slots=True)
class _Job:
    drafts: Sequence[Draft]
    fence: Fences | None
    done: Future[list[int]] = field(default_factory=Future)
    rows: list[_Packed] = field(default_factory=list)


class Log:
    """An append-only, hash-chained log. Raises `StoreError` for every failure of the file or disk;
    what was acknowledged before stays."""

    def __init__(self, path: Path, redact: Redactor | None = None) -> None:
        self.path = path
        self.redact = redact or Redactor.from_environment()
        self._waiting: deque[_Job] = deque()
        self._reading, self._writing = threading.Lock(), threading.Lock()
        known = head.read(path)  # first: others append meanwhile
        with guarded(path):
            self._db = connect(path)
            try:
                migrate(self._db)
                whole = _agrees(self._db, known)
                self._reader = connect(path)
            except BaseException:
                self._db.close()
                raise
        self._head = head.Head(path, closed=not whole)
        self._end: tuple[int, bytes] = (0, GENESIS)  # as of the last commit of this process
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="agentloop-log")

    def close(self) -> None:
        """Wait for the writes under way and close the file; idempotent."""
        self._writer.shutdown()
        with self._reading:
            self._reader.close()
        with self._writing:
            self._db.close()
            self._head.close()

    def append(self, drafts: Sequence[Draft], *, fence: Fences | None = None) -> list[int]:
        """The seq of each draft, when all are on the disk. A (kind, key) that exists is not
        written again: the first write wins and its seq is returned. All drafts are written, or
        none. Raises `StoreError`, also when `fence` is no longer the latest."""
        job = _Job(drafts, fence)
        # In this thread: handing a commit over and back costs as much as the commit.
        if _packed(job, self.redact):
            self._waiting.append(job)
            while not job.done.done():
                self._flush()
        return job.done.result()

    async def append_async(
        self, drafts: Sequence[Draft], *, fence: Fences | None = None
    ) -> list[int]:
        """`append` that lets other tasks run meanwhile, and shares its commit with theirs."""
        return await asyncio.wrap_future(self._submit(drafts, fence))

    def get(self, kind: str, key: str) -> Entry | None:
        """The entry of that name."""
        found = self._fetch(
            "SELECT seq, kind, key, scope, at, body FROM entry WHERE kind = ? AND key = ?",
            (kind, key),
        )
        return _entry(found[0]) if found else None

    def latest(self, kind: str, prefix: str) -> Entry | None:
        """The last entry of `kind` whose key begins with `prefix`."""
        found = self._fetch(
            "SELECT seq, kind, key, scope, at, body FROM entry"
            " WHERE kind = ? AND key >= ? AND key < ? ORDER BY seq DESC LIMIT 1",
            (kind, prefix, prefix + "\U0010ffff"),
        )
        return _entry(found[0]) if found else None

    def keys(self, kind: str, prefix: str = "") -> list[str]:
        """The keys of `kind` that begin with `prefix`, sorted; no body is read."""
        sql = "SELECT key FROM entry WHERE kind = ? AND key >= ? AND key < ? ORDER BY key"
        return [key for (key,) in self._fetch(sql, (kind, prefix, prefix + "\U0010ffff"))]

    def chosen(self, query: Query, among: Sequence[str] | None = None) -> set[str]:
        """The keys that `query` chooses, of those in `among` unless `None`; no body is read."""
        return {key for (key,) in self._fetch(*names(query, among))}

    def read(self, query: Query = Query()) -> Iterator[Entry]:
        """The entries that `query` chooses, in the order it asks for, a page at a time."""
        for row in self._rows(query, scored=False):
            yield _entry(row)

    def scored(self, query: Query) -> Iterator[tuple[Entry, Entry | None]]:
        """The episodes that `query` chooses, each with its latest score."""
        for row in self._rows(query, scored=True):
            yield _entry(row[:6]), None if row[6] is None else _entry(row[6:])

    def lease(self, name: str, holder: str, ttl: float) -> int:
        """Take the lease `name` for `ttl` seconds: a token that grows with each holder. Raises
        `LeaseHeld`, a `StoreError`, when it is held."""
        return self._change(lambda db: leases.take(db, name, holder, ttl))

    def renew(self, name: str, token: int, ttl: float) -> None:
        """Hold a lease for `ttl` seconds from now; raises `LeaseLost` when it was lost."""
        self._change(lambda db: leases.extend(db, (name, token), ttl))

    def release(self, name: str, token: int) -> None:
        """Give a lease back; nothing happens when it was lost."""
        self._change(lambda db: leases.drop(db, (name, token)))

    def verify(self) -> tuple[int, list[str]]:
        """The number of entries and the problems found, empty when all is well; never raises for
        what is wrong in the file."""
        known = head.read(self.path)  # first: others append meanwhile
        try:
            with guarded(self.path), closing(connect(self.path)) as db:
                return audit(db, known)
        except StoreError as error:
            return 0, [str(error)]

    def _submit(self, drafts: Sequence[Draft], fence: Fences | None) -> Future[list[int]]:
        job = _Job(drafts, fence)
        self._waiting.append(job)
        try:
            self._writer.submit(self._flush)
        except RuntimeError as error:
            raise StoreError(f"the log `{self.path}` was closed") from error
        return job.done

    def _flush(self) -> None:
        """Write what waits, in one commit. Another flush may have taken the job that this one was
        started for, and then it is done when this one gets its turn."""
        with self._writing:
            jobs: list[_Job] = []
            while self._waiting and len(jobs) < _GROUP:
                job = self._waiting.popleft()
                if job.rows or (
                    job.done.set_running_or_notify_cancel() and _packed(job, self.redact)
                ):
                    jobs.append(job)
            if jobs:
                self._write(jobs)

    def _write(self, jobs: list[_Job]) -> None:
        try:
            with guarded(self.path), writing(self._db):
                results = self._extend(jobs)
        except BaseException as error:  # whatever it is, those who wait must hear of it
            for job in jobs:
                job.done.set_exception(error)
            if isinstance(error, Exception):
                return
            raise
        self._head.note(*self._end)
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, StoreError):
                job.done.set_exception(result)
            else:
                job.done.set_result(result)

    def _extend(self, jobs: list[_Job]) -> list[list[int] | StoreError]:
        last = self._db.execute("SELECT seq, hash FROM entry ORDER BY seq DESC LIMIT 1").fetchone()
        seq, prev = last or (0, GENESIS)
        results: list[list[int] | StoreError] = []
        noted: list[tuple[str, tuple[object, ...]]] = []
        for job in jobs:
            if job.fence is not None:
                try:
                    leases.check(self._db, job.fence)
                except StoreError as error:
                    results.append(error)
                    continue
            seqs = []
            for row in job.rows:
                digest = link(prev, seq + 1, row.names, row.at, row.body)
                if _insert(self._db, seq + 1, row, (prev, digest)):
                    seq, prev = seq + 1, digest
                    seqs.append(seq)
                    if row.fact is not None:
                        noted.append((row.fact[0], (seq, *row.fact[1])))
                else:
                    seqs.append(_seq_of(self._db, row))
            results.append(seqs)
        for sql, group in groupby(noted, key=itemgetter(0)):
            self._db.executemany(sql, [values for _, values in group])
        self._end = seq, prev
        return results

    def _change(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Run a small write in a transaction of its own."""
        with self._writing, guarded(self.path), writing(self._db):
            return change(self._db)

    def _rows(self, query: Query, *, scored: bool) -> Iterator[tuple[Any, ...]]:
        after, left = None, query.limit
        while left is None or left > 0:
            page = _PAGE if left is None else min(left, _PAGE)
            rows = self._fetch(*select(query, page=page, after=after, scored=scored))
            yield from rows
            if len(rows) < page:
                return
            after = rows[-1][0]
            left = None if left is None else left - page

    def _fetch(self, sql: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        with guarded(self.path), self._reading:
            return self._reader.execute(sql, values).fetchall()


def _agrees(db: sqlite3.Connection, known: tuple[int, bytes] | None) -> bool:
    """Whether the log has what it was seen to have; a page that cannot be read has nothing."""
    try:
        return not ending(db, known)
    except sqlite3.Error:
        return False


def _insert(db: sqlite3.Connection, seq: int, row: _Packed, hashes: tuple[bytes, bytes]) -> bool:
    """Whether the row is new; its name decides, within SQLite, so that nobody asks twice."""
    done = db.execute(
        "INSERT INTO entry (seq, kind, key, scope, at, body, prev, hash)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (kind, key) DO NOTHING",
        (seq, *row.names, row.at, row.body, *hashes),
    )
    return done.rowcount == 1


def _seq_of(db: sqlite3.Connection, row: _Packed) -> int:
    """Where the row of this name already stands."""
    by_name = "SELECT seq FROM entry WHERE kind = ? AND key = ?"
    return int(db.execute(by_name, row.names[:2]).fetchone()[0])


def _packed(job: _Job, redact: Redactor) -> bool:
    """Redact and compress before the transaction begins; a draft that is not JSON fails its
    own append and no other."""
    now = time.time()
    try:
        packed = pack([draft.body for draft in job.drafts], redact)
        for draft, (body, data) in zip(job.drafts, packed, strict=True):
            names = (draft.kind, draft.key, draft.scope)
            fact = facts.storable(*names, body)
            at = float(now if draft.at is None else draft.at)
            job.rows.append(_Packed(names, at, data, fact))
    except StoreError as error:
        job.done.set_exception(error)
    except Exception as error:
        job.done.set_exception(StoreError(f"a draft cannot be stored: {error}"))
    else:
        return True
    return False


def _entry(row: tuple[Any, ...]) -> Entry:
    seq, kind, key, scope, at, body = row
    return Entry(seq=seq, kind=kind, key=key, scope=scope, at=at, body=unpack(body))
