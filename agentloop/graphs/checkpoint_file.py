"""One thread's checkpoints in one append-only file: what is in it, and how it grows.

Goes in: references to encoded values and the parts of a checkpoint that changed. Comes out: frames
(length, CRC-32, msgpack) appended with one `write` each, and, when the file is opened again, the
same snapshots. Decisions: a value is stored once, as a numbered chunk, and a snapshot names chunks
relative to its parent, so a conversation that grows by a message costs that message; a file and not
a database, because a database writes whole pages, which is many times a step's bytes. There is no
fsync: what a finished `write` holds survives `kill -9`; after a power cut the file ends earlier (a
torn frame and all after it are dropped), and a run goes on from an earlier step.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ormsgpack

from agentloop.errors import StoreError
from agentloop.graphs.checkpoint_redact import redacted, suspects
from agentloop.graphs.shared_file import SharedFile
from agentloop.trajectories.redact import Redactor

FORMAT = 1
Packed = int | list[int]
"""A value's chunk, or the chunks of a list's elements."""
Delta = tuple[dict[str, Any], list[str]]
"""Of a dictionary against another: what to set, what to remove."""

_HEAD = struct.Struct("<II")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_GROUPS = ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))
_HEADER, _SNAPSHOT, _WRITES, _NOTE, _CUT = range(5)
_OPTION = ormsgpack.OPT_NON_STR_KEYS
_PACKING = _OPTION | ormsgpack.OPT_PASSTHROUGH_BIG_INT | ormsgpack.OPT_REPLACE_SURROGATES
_BIG = 1
"""Extension that holds an integer of more than 64 bits, in hexadecimal digits."""


class Snapshot(NamedTuple):
    """A checkpoint with its values replaced by references."""

    parent: str | None
    head: dict[str, Any]
    versions: dict[str, Any]
    seen: dict[str, Any]
    metadata: dict[str, Any]
    values: dict[str, Packed]


class Write(NamedTuple):
    """What one task wrote to one channel, waiting for the next checkpoint."""

    path: str
    channel: str
    value: Packed


class ThreadFile:
    """The state of one thread, in memory and on disk. Not thread-safe; several processes may use
    the same file (each frame is composed under the file's lock)."""

    def __init__(self, path: Path, thread: str, redact: Redactor | None) -> None:
        """`redact` sees all that is stored, first."""
        self.path, self.thread, self._redact = path, thread, redact
        self._file = SharedFile(path)
        self._forget()

    def _forget(self) -> None:
        self.chunks: list[bytes] = []
        self.snapshots: dict[tuple[str, str], Snapshot] = {}
        self.writes: dict[tuple[str, str], dict[tuple[str, int], Write]] = {}
        self.live: dict[tuple[str, str], tuple[list[Any], list[int], bytes]] = {}
        """By (namespace, channel) the elements last packed, their chunks, and the documents of the
        containers among them."""
        self.notes: list[Any] = []
        self.settled = 0
        """How many notes there were when a step was last stored."""
        self._numbers: dict[bytes, int] = {}
        self._fresh = 0  # chunks that no frame holds yet
        self._frames: list[bytes] = []
        self._size, self._inode = 0, [0, 0]

    def chunk(self, raw: bytes) -> int:
        """The number of the chunk that holds the document `raw`, a new one if need be."""
        number = self._numbers.get(raw)
        if number is None:
            number = self._numbers[raw] = len(self.chunks)
            self.chunks.append(raw)
            self._fresh += 1
        return number

    def add_snapshot(self, ns: str, name: str, new: Snapshot) -> None:
        """Append a checkpoint; within `writing`."""
        old = self.snapshots.get((ns, new.parent or "")) or _EMPTY
        body = [
            ns, _short(name), _short(new.parent), _delta(old.head, new.head),
            _delta(old.versions, new.versions), _delta(old.seen, new.seen),
            _delta(old.metadata, new.metadata), _delta_of_values(old.values, new.values),
        ]  # fmt: skip
        read = self._frame(_SNAPSHOT, body)
        if read is None:
            head, seen, metadata = map(_own, (new.head, new.seen, new.metadata))
            own = Snapshot(new.parent, head, dict(new.versions), seen, metadata, new.values)
            self._keep_snapshot(ns, name, own)
        else:
            self._take_snapshot(read)

    def add_writes(self, ns: str, name: str, task: str, writes: dict[int, Write]) -> None:
        """Append a task's writes by their positions; within `writing`."""
        triples = [
            [at, self._word(write.path), self._word(write.channel), write.value]
            for at, write in writes.items()
        ]
        read = self._frame(_WRITES, [ns, _short(name), _short(task), triples])
        if read is None:
            self._keep_writes(ns, name, {(task, at): write for at, write in writes.items()})
        else:
            self._take_writes(read)

    def add_note(self, note: Any) -> None:
        """Append what a run wants to find again beside its steps; within `writing`."""
        read = self._frame(_NOTE, [note])
        self._take(_NOTE, [_own(note)] if read is None else read)

    def cut_notes(self) -> None:
        """Forget the notes made since a step was last stored; within `writing`."""
        if len(self.notes) > self.settled:
            self._frame(_CUT, [self.settled])
            self._take(_CUT, [self.settled])

    def _word(self, text: str) -> int:
        return self.chunk(ormsgpack.packb(text))

    def close(self) -> None:
        """Give up the open file; idempotent. It is opened again when it is written to."""
        self._file.close()

    @contextmanager
    def writing(self) -> Iterator[ThreadFile]:
        """Append what is added within, all of it or nothing. Raises `StoreError`."""
        try:
            file, found = self._file.lock()
            if _state(found) != (*self._inode, self._size):
                self._load(file)
                os.ftruncate(file, self._size)
            if not self._size:
                self._frame(_HEADER, [FORMAT, self.thread])
            yield self
            self._append(file)
            self._file.unlock()
        except BaseException as error:
            self._file.close()
            self._size = -1  # memory may be ahead of the file: read it again
            if isinstance(error, OSError):
                raise StoreError(
                    f"the checkpoint `{self.path}` cannot be written: {error}"
                ) from error
            raise

    def _append(self, file: int) -> None:
        data, self._frames = b"".join(self._frames), []
        if os.write(file, data) != len(data):
            os.ftruncate(file, self._size)
            raise StoreError(f"`{self.path}` cannot grow: the disk is full; free some space")
        self._size += len(data)

    def refresh(self) -> ThreadFile:
        """Take in what another process wrote. Raises `StoreError`."""
        try:
            if _state(self.path.stat()) != (*self._inode, self._size):
                file = os.open(self.path, os.O_RDONLY)
                try:
                    self._load(file)
                finally:
                    os.close(file)
        except FileNotFoundError:
            self._forget()
        except OSError as error:
            raise StoreError(f"the checkpoint `{self.path}` cannot be read: {error}") from error
        return self

    def remove(self) -> None:
        """Delete the file, if there is one. Raises `StoreError`."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"the checkpoint `{self.path}` cannot be removed: {error}") from error
        self._file.close()
        self._forget()

    def _load(self, file: int) -> None:
        self._forget()
        *self._inode, size = _state(os.fstat(file))
        data = os.pread(file, size, 0)
        for kind, chunks, body, end in _frames(data):
            for chunk in chunks:
                self._numbers[chunk] = len(self.chunks)
                self.chunks.append(chunk)
            self._take(kind, body)
            self._size = end

    def _take(self, kind: int, body: list[Any]) -> None:
        if kind == _SNAPSHOT:
            self._take_snapshot(body)
        elif kind == _WRITES:
            self._take_writes(body)
        elif kind == _NOTE:
            self.notes.append(body[0])
        elif kind == _CUT:
            del self.notes[body[0] :]
        elif body[0] != FORMAT:
            raise StoreError(
                f"`{self.path}` has checkpoint format {body[0]}, this release reads {FORMAT}; "
                "remove it to start that rollout over"
            )

    def _take_snapshot(self, body: list[Any]) -> None:
        ns, name, parent = body[0], _long(body[1]), _long(body[2])
        old = self.snapshots.get((ns, parent or "")) or _EMPTY
        head, versions, seen, metadata = (
            _patched(known, delta) for known, delta in zip(old[1:5], body[3:7], strict=True)
        )
        changed, removed = body[7]
        values = {key: _packed(old.values.get(key), value) for key, value in changed.items()}
        values = _patched(old.values, (values, removed))
        new = Snapshot(parent, head, versions, seen, metadata, values)
        self._keep_snapshot(ns, str(name), new)

    def _keep_snapshot(self, ns: str, name: str, new: Snapshot) -> None:
        self.snapshots[ns, name] = new
        self.settled = len(self.notes)

    def _take_writes(self, body: list[Any]) -> None:
        ns, checkpoint, task, triples = body
        made = {}
        for at, path, channel, value in triples:
            where, name = (ormsgpack.unpackb(self.chunks[word]) for word in (path, channel))
            made[str(_long(task)), at] = Write(where, name, value)
        self._keep_writes(ns, str(_long(checkpoint)), made)

    def _keep_writes(self, ns: str, name: str, new: dict[tuple[str, int], Write]) -> None:
        self.writes.setdefault((ns, name), {}).update(new)
        self.settled = len(self.notes)

    def _frame(self, kind: int, body: list[Any]) -> list[Any] | None:
        """Add a frame; returns its body as it will be read when something was taken out of it, so
        that memory is what the file is."""
        first, self._fresh = len(self.chunks) - self._fresh, 0
        packed = ormsgpack.packb(body, default=_big, option=_PACKING)
        data = ormsgpack.packb([kind, self.chunks[first:], packed])
        suspected = self._redact is not None and suspects(data, self._redact)
        if self._redact is not None and suspected:
            self.chunks[first:] = [redacted(one, self._redact) for one in self.chunks[first:]]
            packed = redacted(packed, self._redact)
            data = ormsgpack.packb([kind, self.chunks[first:], packed])
        self._frames.append(_HEAD.pack(len(data), zlib.crc32(data)) + data)
        return _unpacked(packed) if suspected else None


def _state(found: os.stat_result) -> tuple[int, int, int]:
    """Which file it is and how long: other than before, another process was here."""
    return found.st_dev, found.st_ino, found.st_size


_PLAIN = frozenset({str, int, float, bool, type(None)})
_EMPTY = Snapshot(None, {}, {}, {}, {}, {})


def thread_of(path: Path) -> str | None:
    """Whose file it is; `None` when not even the first frame is whole. Raises `StoreError`."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD.size)
            data = head + file.read(_HEAD.unpack(head)[0] if len(head) == _HEAD.size else 0)
    except FileNotFoundError:  # deleted meanwhile
        return None
    except OSError as error:
        raise StoreError(f"the checkpoint `{path}` cannot be read: {error}") from error
    return next((str(body[1]) for _, _, body, _ in _frames(data)), None)


def _frames(data: bytes) -> Iterator[tuple[int, list[bytes], list[Any], int]]:
    """(kind, chunks, body, where it ends) of every whole frame before the first broken one."""
    at = 0
    while at + _HEAD.size <= len(data):
        length, checksum = _HEAD.unpack_from(data, at)
        content = data[at + _HEAD.size : at + _HEAD.size + length]
        # Zeros, which a power cut may leave, are an empty frame with a right checksum.
        if not length or len(content) < length or zlib.crc32(content) != checksum:
            return
        at += _HEAD.size + length
        kind, chunks, packed = ormsgpack.unpackb(content, option=_OPTION)
        yield kind, chunks, _unpacked(packed), at


def _unpacked(body: bytes) -> list[Any]:
    def number(code: int, data: bytes) -> int:
        return int(ormsgpack.unpackb(data), 16)

    unpacked: list[Any] = ormsgpack.unpackb(body, ext_hook=number, option=_OPTION)
    return unpacked


def _own(value: Any) -> Any:
    """A copy of plain containers, which LangGraph goes on changing, as they would be read back."""
    kind = type(value)
    if kind is dict:
        return {key: item if type(item) in _PLAIN else _own(item) for key, item in value.items()}
    return [_own(item) for item in value] if kind is list or kind is tuple else value


def _big(value: object) -> ormsgpack.Ext:
    if isinstance(value, int):
        return ormsgpack.Ext(_BIG, ormsgpack.packb(hex(value)))
    raise TypeError(f"a {type(value).__name__} cannot be kept beside a step")


def _delta(old: dict[str, Any], new: dict[str, Any]) -> Delta:
    changed = {key: value for key, value in new.items() if key not in old or old[key] != value}
    return changed, [key for key in old if key not in new]


def _patched(old: dict[str, Any], delta: Delta) -> dict[str, Any]:
    changed, removed = delta
    return {**{key: value for key, value in old.items() if key not in removed}, **changed}


def _delta_of_values(old: dict[str, Packed], new: dict[str, Packed]) -> Delta:
    """Like `_delta`; a list becomes [how many of the old elements stay, the new ones...]."""
    changed, removed = _delta(old, new)
    for key, value in changed.items():
        if isinstance(value, list):
            before = old.get(key)
            kept = _common(before, value) if isinstance(before, list) else 0
            changed[key] = [kept, *value[kept:]]
    return changed, removed


def _packed(old: Packed | None, changed: Any) -> Packed:
    if isinstance(changed, int):
        return changed
    kept = old[: changed[0]] if isinstance(old, list) else []
    return [*kept, *changed[1:]]


def _common(old: list[int], new: list[int]) -> int:
    if new[: len(old)] == old:
        return len(old)
    pairs = zip(old, new, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(old), len(new)))


def _short(name: str | None) -> bytes | str | None:
    """A UUID in 16 bytes instead of 36 characters."""
    if name is not None and _UUID.fullmatch(name):
        return bytes.fromhex(name.replace("-", ""))
    return name


def _long(name: bytes | str | None) -> str | None:
    if isinstance(name, bytes):
        digits = name.hex()
        return "-".join(digits[at:to] for at, to in _GROUPS)
    return name
