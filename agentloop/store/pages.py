"""Rows of the `entry` table out of the raw pages of a damaged SQLite file, and of its WAL.

Goes in: a file that SQLite may refuse. Comes out: every row that still stands in it, in no order
and not checked: the chain of hashes says which are whole. Decision: pages are read one by one,
without the tree above them, because one bad page near the root hides all that is below it from
SQLite.
Format: https://www.sqlite.org/fileformat2.html, sections 1.5 (pages), 1.6 (overflow), 2.1 (records)
and 4.1 (WAL).
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Row: TypeAlias = tuple[int, str, str, str, float, bytes, bytes, bytes]
"""seq, kind, key, scope, at, body, prev, hash."""
_SIZE = 4096
"""Of a page: SQLite's default, and ours."""
_SIZES = frozenset(2**n for n in range(9, 17))
_LEAF = 0x0D
_WAL, _FRAME = 32, 24
_COLUMNS = 8
_INTS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


@dataclass(frozen=True)
class Cell:
    """A place in a page."""

    page: int
    version: int
    at: int


class Pages:
    """The pages of a file and its WAL, newest version first."""

    def __init__(self, data: memoryview, frames: memoryview, size: int) -> None:
        self._size = size
        self._pages: dict[int, list[memoryview]] = defaultdict(list)
        step = _FRAME + self._size
        for start in range(_WAL, len(frames) - step + 1, step):
            (number,) = struct.unpack_from(">I", frames, start)
            self._pages[number].insert(0, frames[start + _FRAME : start + step])
        for number in range(1, -(-len(data) // self._size) + 1):
            self._pages[number].append(data[(number - 1) * self._size : number * self._size])

    def places(self) -> dict[int, list[Cell]]:
        """Where a row of each seq may stand."""
        found: dict[int, list[Cell]] = defaultdict(list)
        for number, versions in self._pages.items():
            for version, page in enumerate(versions):
                for at in _cells(page, 100 if number == 1 else 0):
                    with_seq = _varints(page, at, 2)
                    if with_seq is not None:
                        found[with_seq[0][1]].append(Cell(number, version, at))
        return found

    def row(self, cell: Cell) -> Iterator[Row]:
        """What may be read at `cell`: nothing, or the row by the newest or by the oldest pages that
        its body goes on in."""
        page = self._pages[cell.page][cell.version]
        for oldest in (False, True):
            payload = self._payload(page, cell.at, oldest=oldest)
            row = None if payload is None else _record(*payload)
            if row is not None:
                yield row

    def _payload(self, page: memoryview, at: int, *, oldest: bool) -> tuple[int, bytes] | None:
        """(seq, the record's bytes) of the cell at `at`."""
        head = _varints(page, at, 2)
        if head is None:
            return None
        (size, seq), start = head
        local = _local(size, self._size)
        if size < 0 or start + local > len(page):
            return None
        parts = [bytes(page[start : start + local])]
        left = size - local
        after = page[start + local : start + local + 4]
        seen: set[int] = set()
        while left > 0:
            number = int.from_bytes(after, "big")
            versions = self._pages.get(number)
            if not versions or number in seen:
                return None
            seen.add(number)
            more = versions[-1 if oldest else 0]
            parts.append(bytes(more[4 : 4 + min(left, self._size - 4)]))
            left -= len(parts[-1])
            after = more[:4]
            if not parts[-1]:
                return None
        return seq, b"".join(parts)


def open_pages(path: Path) -> Pages:
    """The pages of the file at `path`, in the size that shows the most rows: the one that the file
    states may be damaged as well. Raises `OSError`."""
    data = memoryview(path.read_bytes())
    wal = path.with_name(path.name + "-wal")
    frames = memoryview(wal.read_bytes()) if wal.is_file() else memoryview(b"")
    stated = int.from_bytes(data[16:18], "big")
    sizes = {_SIZE, 65536 if stated == 1 else stated, int.from_bytes(frames[8:12], "big")}
    found = [Pages(data, frames, size) for size in sorted(sizes & _SIZES)]
    return max(found, key=lambda one: len(one.places()))


def _cells(page: memoryview, start: int) -> Iterator[int]:
    """Where the cells of a table's leaf begin; of any other page none."""
    if len(page) < start + 8 or page[start] != _LEAF:
        return
    count = int.from_bytes(page[start + 3 : start + 5], "big")
    for at in range(start + 8, min(start + 8 + 2 * count, len(page) - 1), 2):
        place = int.from_bytes(page[at : at + 2], "big")
        if start + 8 < place < len(page):
            yield place


def _local(size: int, usable: int) -> int:
    """How much of a record of `size` bytes stands in its leaf."""
    most = usable - 35
    if size <= most:
        return size
    least = (usable - 12) * 32 // 255 - 23
    some = least + (size - least) % (usable - 4)
    return some if some <= most else least


def _varints(data: memoryview, at: int, count: int) -> tuple[list[int], int] | None:
    values = []
    for _ in range(count):
        value = 0
        for place in range(9):
            if at >= len(data):
                return None
            byte = data[at]
            at += 1
            if place == 8:
                value = value << 8 | byte
                break
            value = value << 7 | byte & 0x7F
            if byte < 0x80:
                break
        values.append(value)
    return values, at


def _record(seq: int, payload: bytes) -> Row | None:
    """The row of a record that has the columns of `entry`."""
    view = memoryview(payload)
    head = _varints(view, 0, 1)
    if head is None:
        return None
    found = _varints(view, head[1], _COLUMNS)
    if found is None or found[1] != head[0][0]:
        return None
    types, at = found
    if types[0] != 0 or any(one < 12 for one in (*types[1:4], *types[5:])):
        return None
    values: list[object] = []
    for kind in types[1:]:
        size = 8 if kind == 7 else _INTS.get(kind, 0) if kind < 12 else (kind - 12) // 2
        if at + size > len(payload):
            return None
        values.append(_value(kind, payload[at : at + size]))
        at += size
    names, blobs = values[:3], values[4:]
    if not all(isinstance(one, str) for one in names) or not isinstance(values[3], float):
        return None
    if not all(isinstance(one, bytes) for one in blobs):
        return None
    return (seq, *values)  # type: ignore[return-value]


def _value(kind: int, data: bytes) -> object:
    if kind >= 12:
        if kind % 2 == 0:
            return data
        try:
            return data.decode()
        except UnicodeDecodeError:
            return None
    if kind == 7:
        return float(struct.unpack(">d", data)[0])
    # SQLite writes a whole number in a column of reals as an integer.
    return float(int.from_bytes(data, "big", signed=True)) if kind in _INTS else float(kind == 9)
