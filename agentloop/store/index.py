"""Find by meaning: episodes, skills and instructions in Chroma, rebuildable from the log.

The log is the outbox: entries after the mark are not indexed yet. One process at a time, the
holder of a file lock, drains it; all others query through a client of their own, opened again when
the mark has moved, because an open Chroma client does not see what other processes add. Chroma
can crash the process on damaged vector files, so the mark holds their digests and the holder of
the lock compares them before Chroma opens anything; a damaged index is built again, in a new
folder, and published by replacing the mark. Use one `Index` per path in a process.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from agentloop.errors import StoreError
from agentloop.ports import Embedder
from agentloop.store.log import Log
from agentloop.store.mark import KINDS, Mark, digests, folders, publish, published
from agentloop.store.query import Entry, Query

_BATCH = 256
_LOCK_SECONDS = 60.0
Filter = Mapping[str, str | bool]


class Index:
    """Semantic search over a log. Raises `StoreError` when the index cannot be used."""

    def __init__(self, path: Path, embedder: Embedder) -> None:
        self.path = path
        self._embedder = embedder
        self._turn = threading.RLock()
        self._client: Any = None
        self._seen: Mark | None = None
        path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def close(self) -> None:
        """Let go of the files; idempotent."""
        with self._turn:
            if self._client is not None:
                self._client.close()
            self._client = self._seen = None

    def drain(self, log: Log) -> int:
        """Index what the log has since the mark; a missing or damaged index is built again. The
        number of entries read, 0 also when another process is at it."""
        with self._turn, self._exclusive(0.0) as held:
            if not held:
                return 0
            mark = published(self.path)
            if mark is None or not self._sound(mark):
                return self._build(log)
            return self._fill(log, mark)

    def rebuild(self, log: Log) -> int:
        """Index the whole log again; the number of entries read. Raises `StoreError` when another
        process keeps the lock for a minute."""
        with self._turn, self._exclusive(_LOCK_SECONDS) as held:
            if not held:
                raise StoreError(f"another process is writing the index `{self.path}`; try again")
            return self._build(log)

    def near(
        self, kind: str, text: str, k: int, where: Filter | None = None
    ) -> list[tuple[str, float]]:
        """Ids of the `k` nearest and their cosine distances in [0, 2], nearest first. `where` asks
        for equal metadata: family, purpose, bundle, scope, success."""
        with self._turn:
            mark = self._attach()
            if mark is None or not mark.rows[kind]:
                return []
            terms = [{name: {"$eq": value}} for name, value in (where or {}).items()]
            with self._chroma():
                found = self._collection(kind).query(
                    query_embeddings=self._embedder.embed([text]),
                    n_results=k,
                    where=terms[0] if len(terms) == 1 else {"$and": terms} if terms else None,
                    include=["distances"],
                )
            return list(zip(found["ids"][0], found["distances"][0], strict=True))

    def problems(self, log: Log) -> list[str]:
        """Where the index and the log disagree; being behind is no problem, and neither is being
        written by another process just now."""
        with self._turn, self._exclusive(0.0) as held:
            if not held or not folders(self.path):
                return []
            mark = published(self.path)
            if mark is None or not self._sound(mark):
                return ["index: damaged; run: agentloop store reindex"]
            found = []
            for kind in KINDS:
                with self._chroma():
                    ids = set(self._collection(kind).get(include=[])["ids"])
                strangers = len(ids.difference(log.keys(kind)))
                if strangers or len(ids) < mark.rows[kind]:
                    found.append(
                        f"index: {kind}s has {len(ids)} ids, {strangers} of them not in the log, "
                        f"instead of {mark.rows[kind]}; run: agentloop store reindex"
                    )
            return found

    def _attach(self) -> Mark | None:
        """Have open what is published. Asked again after opening: a rebuild may have taken the
        folder away in between."""
        while (mark := published(self.path)) is not None and mark != self._seen:
            self._open(mark)
        return mark

    def _build(self, log: Log) -> int:
        # A folder that no reader has open, so it can be filled at leisure.
        before = folders(self.path)
        mark = Mark(folder=f"chroma-{max(before.values(), default=0) + 1}")
        self._open(mark)
        count = self._fill(log, mark)
        if not count:
            self._publish(mark)
        for old in before:
            shutil.rmtree(old, ignore_errors=True)  # what is left goes with the next build
        return count

    def _fill(self, log: Log, mark: Mark) -> int:
        entries = log.read(Query(kinds=(*KINDS, "score"), since_seq=mark.seq))
        count = 0
        while batch := list(islice(entries, _BATCH)):
            with self._chroma():
                self._write(batch)
            count += len(batch)
            mark.seq = batch[-1].seq
            for entry in batch:
                if entry.kind in KINDS:
                    mark.rows[entry.kind] += 1
        if count:
            self._publish(mark)
        return count

    def _write(self, batch: list[Entry]) -> None:
        scores = {_episode_of(e): _succeeded(e) for e in batch if e.kind == "score"}
        for kind in KINDS:
            entries = [entry for entry in batch if entry.kind == kind]
            if entries:
                self._collection(kind).upsert(
                    ids=[entry.key for entry in entries],
                    embeddings=self._embedder.embed([_text(entry) for entry in entries]),
                    metadatas=[_metadata(entry) for entry in entries],
                )
        if scores:  # merged into what the episode has; ids that are not there are passed over
            self._collection("episode").update(
                ids=list(scores), metadatas=[{"success": value} for value in scores.values()]
            )

    def _publish(self, mark: Mark) -> None:
        with self._chroma():
            for kind in KINDS:
                # A query makes Chroma write out what it holds back, so that no reader's query
                # changes the files after their digests are taken.
                self._collection(kind).query(
                    query_embeddings=self._embedder.embed([""]), n_results=1, include=[]
                )
        mark.files = digests(self.path / mark.folder)
        publish(self.path, mark)
        self._seen = mark

    def _sound(self, mark: Mark) -> bool:
        """Whether the published folder is what was published; asked with the lock held."""
        if self._seen == mark:
            return True
        self.close()
        if digests(self.path / mark.folder) != mark.files:
            return False
        try:
            self._open(mark)
            with self._chroma():
                return all(self._collection(kind).count() >= mark.rows[kind] for kind in KINDS)
        except StoreError:
            return False

    def _open(self, mark: Mark) -> None:
        self.close()
        os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
        import chromadb  # heavy: a second

        with self._chroma():
            self._client = chromadb.PersistentClient(
                str(self.path / mark.folder),
                settings=chromadb.Settings(anonymized_telemetry=False),
            )
        self._seen = mark

    def _collection(self, kind: str) -> Any:
        # Our own vectors always: Chroma's default function would download a model.
        return self._client.get_or_create_collection(
            f"{kind}s", embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
        )

    @contextmanager
    def _chroma(self) -> Iterator[None]:
        """Chroma raises many types, from several libraries; all of them mean the same here."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            self.close()
            raise StoreError(
                f"the index `{self.path}` cannot be used: {error}; run: agentloop store reindex"
            ) from error

    @contextmanager
    def _exclusive(self, seconds: float) -> Iterator[bool]:
        """Whether this process got the lock within `seconds`; the system frees it on any death."""
        deadline = time.monotonic() + seconds
        with open(self.path / "lock", "a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        yield False
                        return
                    time.sleep(0.05)
            yield True


def _text(entry: Entry) -> str:
    body: Any = entry.body
    if entry.kind == "episode":
        return str(body["task"]["prompt"])
    if entry.kind == "skill":
        return f"{body['name']}\n{body['description']}"
    return str(body["text"])


def _metadata(entry: Entry) -> dict[str, str | bool]:
    body: Any = entry.body
    found: dict[str, str | bool] = {"scope": entry.scope}
    if entry.kind == "episode":
        found |= {
            "family": body["task"].get("family", "default"),
            "purpose": body["purpose"],
            "bundle": body["bundle"],
        }
        if body.get("score"):
            found["success"] = bool(body["score"]["success"])
    return found


def _episode_of(entry: Entry) -> str:
    body: Any = entry.body
    return str(body["episode"])


def _succeeded(entry: Entry) -> bool:
    body: Any = entry.body
    return bool(body["score"]["success"])
