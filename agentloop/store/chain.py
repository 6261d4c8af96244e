"""How an entry is packed, how it is linked to the one before, and how all of it is checked.

The hash of an entry covers the hash before it, so no entry can be changed, taken out or put
between without every later hash being wrong. (Entries cut off the end leave a valid, shorter
chain: that takes a copy of the last hash elsewhere to see, `store.head`.)
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import zip_longest
from typing import Any

import zstandard
from pydantic_core import PydanticSerializationError, to_json

from agentloop.errors import StoreError
from agentloop.records import Json
from agentloop.store import facts
from agentloop.trajectories.redact import Redactor

GENESIS = bytes(32)
"""What stands for the hash before the first entry."""
_SHOWN = 20


def encode(body: Json) -> tuple[bytes, bool]:
    """Compact JSON, and whether its text stands there as it is; not so where a model's output has
    lone surrogates, which only ASCII escapes hold."""
    try:
        return to_json(body, inf_nan_mode="constants"), True  # a quarter of the time of `json`
    except PydanticSerializationError:
        return json.dumps(body, separators=(",", ":")).encode(), False


class _Codec(threading.local):
    """A thread's own: made once, as making one costs more than using it. Level 1 takes a quarter of
    zlib's time and less room."""

    def __init__(self) -> None:
        self.compress = zstandard.ZstdCompressor(level=1).compress
        self.decompress = zstandard.ZstdDecompressor().decompress


_CODEC = _Codec()
_DAMAGE = (zstandard.ZstdError, zlib.error, MemoryError)


def pack(bodies: Sequence[Json], redactor: Redactor) -> list[tuple[Json, bytes]]:
    """Each body without secrets, and its compressed JSON: the bytes that are hashed and stored. It
    is written once and the redactor asked by those bytes; most bodies need no closer look."""
    written = [encode(body) for body in bodies]
    suspected = redactor.suspects_each([text for text, _ in written])
    clean, texts = list(bodies), [text for text, _ in written]
    for at, (text, plain) in enumerate(written):
        if suspected[at] or not plain:
            clean[at] = redactor(json.loads(text))  # as written: no tuple or number hides a string
            texts[at], _ = encode(clean[at])
    return list(zip(clean, map(_CODEC.compress, texts), strict=True))


def unpack(data: bytes) -> Any:
    """The body that was packed (the first logs have zlib); raises `StoreError` when damaged."""
    try:
        text = (_CODEC if data.startswith(zstandard.FRAME_HEADER) else zlib).decompress(data)
        return json.loads(text)
    except (*_DAMAGE, ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"stored data is damaged: {error}; see: agentloop store verify") from error


def link(prev: bytes, seq: int, names: tuple[str, str, str], at: float, body: bytes) -> bytes:
    """The hash of an entry; `names` are its kind, key and scope. Every field of variable length
    is preceded by its length, so that no two entries have the same input."""
    fields = [name.encode("utf-8", "surrogatepass") for name in names] + [body]
    parts = [prev, struct.pack(">qd", seq, at)]
    for field in fields:
        parts += [struct.pack(">q", len(field)), field]
    return hashlib.blake2b(b"".join(parts), digest_size=32).digest()


def audit(
    db: sqlite3.Connection, known: tuple[int, bytes] | None = None
) -> tuple[int, list[str]]:  # fmt: skip
    """The number of entries and what is wrong, empty when all is well: SQLite's own integrity
    check, every link and body, the derived table against the entries, and the end against `known`,
    the (seq, hash) that was the last once. At most the first problems are told."""
    problems: list[str] = []
    rows = 0
    try:
        db.execute("BEGIN")  # one snapshot, whatever others append meanwhile
        found = [text for (text,) in db.execute(f"PRAGMA integrity_check({_SHOWN})")]
        problems += [f"database: {text}" for text in found if text != "ok"]
        with closing(sqlite3.connect(":memory:")) as expected:
            expected.execute(facts.TABLE)
            for problem in _walk(db, expected):
                rows += 1
                if problem and len(problems) < _SHOWN:
                    problems.append(problem)
            problems += _compare(db, expected)
        problems += ending(db, known)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        problems.append(f"database: {error}")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
    return rows, problems


def _walk(db: sqlite3.Connection, expected: sqlite3.Connection) -> Iterator[str]:
    """One item per entry: its problem, or nothing."""
    prev, want = GENESIS, 1
    rows = db.execute("SELECT seq, kind, key, scope, at, body, prev, hash FROM entry ORDER BY seq")
    for seq, kind, key, scope, at, body, before, stored in rows:
        problem = ""
        if seq != want:
            problem = f"entry {want} is missing"
        elif not (
            all(isinstance(text, str) for text in (kind, key, scope))
            and isinstance(at, float)
            and isinstance(body, bytes)
        ):
            problem = f"entry {seq} has a field of a wrong type"
        elif before != prev or stored != link(prev, seq, (kind, key, scope), at, body):
            problem = f"entry {seq} ({kind} `{key}`) does not match its hash"
        else:
            try:
                facts.note(expected, seq, (kind, key, scope, unpack(body)))
            except StoreError as error:
                problem = f"entry {seq} ({kind} `{key}`): {error}"
        yield problem
        prev, want = stored, seq + 1


def ending(db: sqlite3.Connection, known: tuple[int, bytes] | None) -> list[str]:
    """What is wrong with the end of a log of which `known`, a (seq, hash), was the last once."""
    if known is None or known[0] == 0:
        return []
    seq, digest = known
    (found,) = db.execute("SELECT hash FROM entry WHERE seq = ?", (seq,)).fetchone() or (None,)
    if found is None:
        (rows,) = db.execute("SELECT coalesce(max(seq), 0) FROM entry").fetchone()
        return [f"entries {rows + 1} to {seq} are missing at the end"]
    return [] if found == digest else [f"entry {seq} is not the one that was written there"]


def _compare(db: sqlite3.Connection, expected: sqlite3.Connection) -> list[str]:
    sql = "SELECT * FROM episode_fact ORDER BY id"
    for have, want in zip_longest(db.execute(sql), expected.execute(sql)):
        if have != want:
            return [f"episode_fact does not agree with the entries: {have} instead of {want}"]
    return []
