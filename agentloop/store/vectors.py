"""One Chroma folder: unit vectors under ids in, the nearest ids out. The only home of chromadb.

Vectors alone are kept, no text and no metadata. Several threads may use a folder; each call has it
for itself. Every error of Chroma, of whatever type and library, leaves as `StoreError`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentloop.errors import StoreError
from agentloop.store.mark import KINDS

_HNSW = {"space": "cosine", "ef_search": 800}
"""Of 100,000 vectors (eight of each) Chroma's own breadth of 100 finds 90 % of the ten nearest in
1.5 ms, 400 finds 98 % in 2.5 ms, and 800 found all in 3.6 ms."""
_PANIC = "PanicException"
"""What Chroma's Rust raises where it did not expect an error of the system; no `Exception`."""
Hit = tuple[str, float]
"""(key of an entry, cosine distance in [0, 2])."""


class Vectors:
    """The vectors of one folder, by kind of entry."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
        import chromadb  # heavy: a second

        with self._chroma():
            self._client = chromadb.PersistentClient(
                str(path), settings=chromadb.Settings(anonymized_telemetry=False)
            )
        try:
            self._of = {kind: self._collection(kind) for kind in KINDS}
        except StoreError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the files. A folder that is opened again in this process is read anew."""
        with self._lock, self._chroma():
            self._client.close()

    def add(self, kind: str, ids: Sequence[str], vectors: Sequence[Sequence[float]]) -> None:
        """Store vectors; an id that is there is replaced."""
        with self._chroma():
            self._of[kind].upsert(ids=list(ids), embeddings=vectors)

    def near(
        self, kind: str, vector: Any, k: int, only: Collection[str] | None = None
    ) -> list[Hit]:
        """The `k` nearest, of those in `only` unless `None`; nearest first."""
        with self._chroma():
            found = self._of[kind].query(
                query_embeddings=[vector], n_results=k, include=["distances"],
                ids=None if only is None else list(only),
            )  # fmt: skip
        return list(zip(found["ids"][0], found["distances"][0], strict=True))

    def ids(self, kind: str) -> set[str]:
        """All ids."""
        with self._chroma():
            return set(self._of[kind].get(include=[])["ids"])

    def count(self, kind: str) -> int:
        """How many there are."""
        with self._chroma():
            return int(self._of[kind].count())

    def settle(self, length: int) -> None:
        """Let Chroma read what it has (it waits for the first query) and write what it holds back,
        so that no later query changes a file; `length` is that of a vector."""
        for kind in KINDS:
            if self.count(kind):
                self.near(kind, [1.0] + [0.0] * (length - 1), 1)

    def _collection(self, kind: str) -> Any:
        # Our own vectors always: Chroma's default function would download a model.
        with self._chroma():
            return self._client.get_or_create_collection(
                f"{kind}s", embedding_function=None, configuration={"hnsw": _HNSW}
            )

    @contextmanager
    def _chroma(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except BaseException as error:
                if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
                    raise
                raise StoreError(
                    f"the index `{self.path.parent}` cannot be used: {error}; "
                    "run: agentloop store reindex"
                ) from error
