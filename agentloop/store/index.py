"""Find by meaning: episodes, skills and instructions in Chroma, rebuildable from the log.

The log is the outbox: entries after the mark are in no Chroma folder yet and are found in memory
(`Tail`), so a search sees every entry committed before it. One process at a time, the holder of a
file lock, drains the tail into Chroma; others go on with what they have open, and open what it
published when it is done, because an open Chroma client does not see what other processes add.
Chroma holds vectors alone. What a search asks of metadata is asked of the log: at 20,000 rows a
`where` took Chroma 27 ms and a search without it 1 ms. Chroma can crash the process on damaged
vector files, so the mark holds their digests and they are compared before Chroma opens anything; a
damaged index is built again, in a new folder, and published by replacing the mark. Use one `Index`
per path in a process.
"""

from __future__ import annotations

import fcntl
import shutil
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from agentloop.errors import StoreError
from agentloop.ports import Embedder
from agentloop.store.log import Log
from agentloop.store.mark import KINDS, Mark, digests, folders, locked, publish, published
from agentloop.store.query import Query
from agentloop.store.tail import Tail, text_of
from agentloop.store.vectors import Hit, Vectors

TAIL = 1000
"""A longer tail is drained: as many rows as Chroma itself holds back before it writes a file."""
_BATCH = 64
"""Rows written at a time; a search waits for one batch at most."""
_WIDE = 20, 100
"""How many times the rows asked for a search with conditions looks at, and then again."""
_LOCK_SECONDS = 60.0


class IndexBusy(StoreError):
    """Another process has kept the lock of the index for too long; nothing is wrong with it."""

    def __init__(self, index: Path) -> None:
        super().__init__(f"another process is writing the index `{index}`; try again")


class Index:
    """Semantic search over a log. Raises `StoreError` when the index cannot be used."""

    def __init__(self, path: Path, embedder: Embedder) -> None:
        self.path = path
        self._embedder = embedder
        self._turn = threading.RLock()
        self._tail = Tail(embedder)
        self._open: Vectors | None = None
        self._seen: Mark | None = None
        self._drainer = ThreadPoolExecutor(1, thread_name_prefix="agentloop-index")
        self._draining: Future[int] | None = None
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreError(f"the index `{path}` cannot be made: {error}") from error

    def close(self) -> None:
        """Wait for a drain under way and let go of the files; idempotent."""
        self._drainer.shutdown()
        self._shut()

    def near(self, log: Log, kind: str, text: str, k: int, where: Query = Query()) -> list[Hit]:
        """Ids of the `k` nearest and their cosine distances in [0, 2], nearest first, of those that
        `where` chooses. Sees every entry committed before the call. A tail that has grown long is
        drained in the background; should that fail, the next call raises. Raises `IndexBusy` when
        another process keeps the lock for a minute and nothing is open here yet."""
        import numpy as np

        deadline = time.monotonic() + _LOCK_SECONDS
        while not self._current():
            if time.monotonic() > deadline:
                raise IndexBusy(self.path)
            time.sleep(0.05)
        with self._turn:
            self._tail.follow(log, 0 if self._seen is None else self._seen.seq)
            vector = np.asarray(self._embedder.embed([text])[0], dtype=np.float32)
            if where == Query():
                hits = self._nearest(kind, vector, k)
            else:
                hits = self._chosen(log, kind, vector, k, where)
            self._drain_soon(log)
        return hits

    def drain(self, log: Log) -> int:
        """Index what the log has since the mark; a missing or damaged index is built again. The
        number of entries read, 0 also when another process is at it."""
        with locked(self.path, fcntl.LOCK_EX, 0.0) as held:
            if not held:
                return 0
            mark, vectors = self._sound()
            if mark is None or vectors is None:
                return self._build(log)
            count, mark = _fill(self.path, vectors, mark, log, self._embedder)
            self._adopt(vectors, mark)
            return count

    def rebuild(self, log: Log) -> int:
        """Index the whole log again; the number of entries read. Raises `IndexBusy` when another
        process keeps the lock for a minute."""
        with locked(self.path, fcntl.LOCK_EX, _LOCK_SECONDS) as held:
            if not held:
                raise IndexBusy(self.path)
            return self._build(log)

    def problems(self, log: Log) -> list[str]:
        """Where the index and the log disagree; being behind is no problem, and neither is being
        written by another process just now."""
        with locked(self.path, fcntl.LOCK_EX, 0.0) as held:
            if not held or not folders(self.path):
                return []
            mark, vectors = self._sound()
            if mark is None or vectors is None:
                return ["index: damaged; run: agentloop store reindex"]
            return list(_differences(vectors, mark, log))

    def _nearest(
        self, kind: str, vector: Any, k: int, only: Collection[str] | None = None
    ) -> list[Hit]:
        found: dict[str, float] = {}
        if self._open is not None and self._seen is not None and self._seen.rows[kind]:
            try:
                found.update(self._open.near(kind, vector, k, only))
            except StoreError:
                self._shut()
                raise
        found.update(self._tail.near(kind, vector, only))
        return sorted(found.items(), key=lambda hit: (hit[1], hit[0]))[:k]

    def _chosen(self, log: Log, kind: str, vector: Any, k: int, where: Query) -> list[Hit]:
        """Look at more than `k` and let the log choose; when that leaves too few, look at the few
        alone that it chooses."""
        for width in (k * factor for factor in _WIDE):
            wide = self._nearest(kind, vector, width)
            kept = log.chosen(where, [name for name, _ in wide])
            if len(kept) >= k or len(wide) < width:
                return [hit for hit in wide if hit[0] in kept][:k]
        chosen = log.chosen(where)
        return self._nearest(kind, vector, k, chosen) if chosen else []

    def _current(self) -> bool:
        """Have open what is published; not while it is being changed, for which what was open
        before is as good, with a longer tail. False when nothing is."""
        with self._turn:
            mark = published(self.path)
            if mark is None or mark == self._seen:
                return True
            with locked(self.path, fcntl.LOCK_SH, 0.0) as held:
                mark = published(self.path)
                if held and mark is not None:
                    self._attach(mark)
                return self._open is not None or mark is None

    def _sound(self) -> tuple[Mark | None, Vectors | None]:
        """What is published and its folder, where both are whole; asked with the lock held."""
        mark = published(self.path)
        try:
            return mark, None if mark is None else self._attach(mark)
        except StoreError:  # damaged: the caller builds it again, or says so
            return None, None

    def _attach(self, mark: Mark) -> Vectors:
        """Open the folder of `mark`; asked with the lock held. Raises `StoreError` unless it is
        what was published."""
        with self._turn:
            if self._open is not None and self._seen == mark:
                return self._open
            self._shut()
            if digests(self.path / mark.folder) != mark.files:
                raise StoreError(f"the index `{self.path}` is damaged; see: agentloop store verify")
            vectors = Vectors(self.path / mark.folder)
            try:
                whole = all(vectors.count(kind) >= mark.rows[kind] for kind in KINDS)
                vectors.settle(_length(self._embedder))
            except StoreError:
                vectors.close()
                raise
            if not whole:
                vectors.close()
                raise StoreError(f"the index `{self.path}` is damaged; see: agentloop store verify")
            self._open, self._seen = vectors, mark
            return vectors

    def _adopt(self, vectors: Vectors, mark: Mark) -> None:
        with self._turn:
            if self._open is not vectors:
                self._shut()
            self._open, self._seen = vectors, mark

    def _shut(self) -> None:
        with self._turn:
            before, self._open, self._seen = self._open, None, None
            if before is not None:
                before.close()

    def _build(self, log: Log) -> int:
        # A folder that no reader has open, so it can be filled at leisure.
        before = folders(self.path)
        empty = Mark(folder=f"chroma-{max(before.values(), default=0) + 1}")
        vectors = Vectors(self.path / empty.folder)
        try:
            count, mark = _fill(self.path, vectors, empty, log, self._embedder)
        except BaseException:
            vectors.close()
            shutil.rmtree(vectors.path, ignore_errors=True)  # a full disk is not made fuller
            raise
        self._adopt(vectors, mark)
        for old in before:
            shutil.rmtree(old, ignore_errors=True)  # what is left goes with the next build
        return count

    def _drain_soon(self, log: Log) -> None:
        done = self._draining
        if done is not None and done.done():
            self._draining = None
            done.result()
        if len(self._tail) > TAIL and self._draining is None:
            self._draining = self._drainer.submit(self.drain, log)


def _fill(
    index: Path, vectors: Vectors, mark: Mark, log: Log, embedder: Embedder
) -> tuple[int, Mark]:
    """Write what `log` has after `mark` and publish; the number of entries, the new mark."""
    seq, rows, count = mark.seq, dict(mark.rows), 0
    entries = log.read(Query(kinds=KINDS, since_seq=seq))
    while batch := list(islice(entries, _BATCH)):
        for kind in KINDS:
            chosen = [entry for entry in batch if entry.kind == kind]
            if chosen:
                made = embedder.embed([text_of(entry) for entry in chosen])
                vectors.add(kind, [entry.key for entry in chosen], made)
                rows[kind] += len(chosen)
        seq = batch[-1].seq
        count += len(batch)
    if count or published(index) != mark:
        vectors.settle(_length(embedder))
        mark = replace(mark, seq=seq, rows=rows, files=digests(index / mark.folder))
        publish(index, mark)
    return count, mark


def _differences(vectors: Vectors, mark: Mark, log: Log) -> Iterator[str]:
    for kind in KINDS:
        ids = vectors.ids(kind)
        strangers = len(ids.difference(log.keys(kind)))
        if strangers or len(ids) < mark.rows[kind]:
            yield (
                f"index: {kind}s has {len(ids)} ids, {strangers} of them not in the log, "
                f"instead of {mark.rows[kind]}; run: agentloop store reindex"
            )


def _length(embedder: Embedder) -> int:
    return len(embedder.embed([""])[0])
