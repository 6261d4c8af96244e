"""What the log has and the index has not yet, in memory: entries in, their nearest out, exactly.

Writing to Chroma costs about a millisecond a row and a reader must open a written folder again, so
entries are found here from the moment they are committed, and go to Chroma by the thousand. Memory
and time are small for that many: 1 kB a row, and one matrix product a query.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from agentloop.ports import Embedder
from agentloop.store.log import Log
from agentloop.store.mark import KINDS
from agentloop.store.query import Entry, Query
from agentloop.store.vectors import Hit

_PAGE = 256


@dataclass
class _Block:
    """Rows of one kind that were read together."""

    last: int
    keys: list[str]
    vectors: Any
    """float32, one unit vector a row."""


@dataclass
class Tail:
    """Entries after some point of the log."""

    embedder: Embedder
    since: int = 0
    seen: int = 0
    """The log was read after the one entry, up to the other."""
    blocks: dict[str, list[_Block]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(block.keys) for blocks in self.blocks.values() for block in blocks)

    def follow(self, log: Log, since: int) -> None:
        """Hold what `log` has after entry `since`; only what is new is read."""
        if since < self.since:  # an index was lost
            self.blocks.clear()
            self.seen = since
        self.since = since
        for kind, blocks in self.blocks.items():
            # A block that reaches over `since` stays; its first rows are then found twice.
            self.blocks[kind] = [block for block in blocks if block.last > since]
        self.seen = max(self.seen, since)
        entries = log.read(Query(kinds=KINDS, since_seq=self.seen))
        while batch := list(islice(entries, _PAGE)):
            for kind in KINDS:
                self._hold(kind, [entry for entry in batch if entry.kind == kind])
            self.seen = batch[-1].seq

    def near(self, kind: str, vector: Any, only: Container[str] | None = None) -> Iterable[Hit]:
        """Every entry of `kind` (of those in `only`) and its distance from the unit `vector`."""
        for block in self.blocks.get(kind, ()):
            for key, distance in zip(block.keys, 1.0 - block.vectors @ vector, strict=True):
                if only is None or key in only:
                    yield key, float(distance)

    def _hold(self, kind: str, entries: list[Entry]) -> None:
        if entries:
            import numpy as np

            vectors = self.embedder.embed([text_of(entry) for entry in entries])
            block = _Block(
                entries[-1].seq, [e.key for e in entries], np.asarray(vectors, dtype=np.float32)
            )
            self.blocks.setdefault(kind, []).append(block)


def text_of(entry: Entry) -> str:
    """What an entry is found by."""
    body: Any = entry.body
    if entry.kind == "episode":
        return str(body["task"]["prompt"])
    if entry.kind == "skill":
        return f"{body['name']}\n{body['description']}"
    return str(body["text"])
