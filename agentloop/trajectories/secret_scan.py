"""The cheap test before any expression: may there be a secret in these bytes?

In: UTF-8 or JSON bytes; out: whether they have one of the marks of a secret's shape, or a run of
base64 long enough to hide one. Pairs of bytes are looked up in one table of 65,536 flags, so the
cost is a few operations over the bytes, however many marks there are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import TYPE_CHECKING

from agentloop.trajectories.secret_shapes import URL, marks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Flags = NDArray[np.uint16]

_GROUPS = 7
_CODE = 0x80
_CODE_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_SHORTEST = 4
RUN = 24
"""Characters of base64 that hold 18 bytes: the shortest secret with a shape of its own."""
_RUN_FLAGS = bytes((_CODE, 0)) * ((RUN - 1) // 2)
"""The pairs that lie in such a run, wherever it begins."""
_SHORTEST_RUN = re.compile(rb"[A-Za-z0-9+/]{%d}" % (RUN - 2))
_BLOCK_FLAGS = int.from_bytes(_RUN_FLAGS[:8], sys.byteorder)


def suspicious(data: bytes) -> tuple[bool, bool]:
    """Whether a shape's mark is in `data`, and whether a run of `RUN` characters of base64 is."""
    if len(data) < _SHORTEST:
        return False, False
    flags, odd = _flags(data)
    found = next(_marked(data, flags, odd), None) is not None
    return found, len(data) >= RUN and _has_run(flags[: (odd + 3) // 4 * 4])


def places(data: bytes) -> Iterator[int]:
    """Bytes of `data` at which something may begin that `suspicious` tells of: for many texts in
    one, with zeros between them, where each needs not be looked at by itself."""
    if len(data) < _SHORTEST:
        return
    flags, odd = _flags(data)
    yield from _marked(data, flags, odd)
    if len(data) < RUN:
        return
    for block in _run_blocks(flags[: (odd + 3) // 4 * 4])[0]:
        # Long numbers fill blocks as well. A run that begins before the first has its start here.
        if _SHORTEST_RUN.search(data, max(0, 8 * block - 8), 8 * block + RUN):
            yield 8 * block


def _flags(data: bytes) -> tuple[Flags, int]:
    """What the pairs of bytes tell, those that begin at even bytes first; how many those are."""
    import numpy as np  # not before there is something to scan

    odd = (len(data) + 1) // 2
    both = data + b"\0" * (len(data) % 2) + data[1:]
    return _table().take(np.frombuffer(both, "<u2", count=len(both) // 2)), odd


def _marked(data: bytes, flags: Flags, odd: int) -> Iterator[int]:
    """Where marks and addresses with credentials begin."""
    # The low byte tells of which groups a pair is the first half, the high byte the second.
    near = flags[:-1] & (flags[1:] >> 8)
    for hit in near.nonzero()[0].tolist():
        at = 2 * hit if hit < odd else 2 * (hit - odd) + 1
        if _is_mark(data, at):  # a pair of one mark and a pair of another in its group are none
            yield at
    for address in URL.finditer(data):
        yield address.start()


def _is_mark(data: bytes, at: int) -> bool:
    """Whether a mark begins at `at`. `task-0` and `asked` have none: a key's `sk` never follows a
    letter, other than one that is part of an escape."""
    if data[at : at + _SHORTEST] not in _marks():
        return False
    before = data[max(0, at - 6) : at]
    inside = before[-1:].isalnum() and b"\\" not in before
    return not (inside and data.startswith((b"sk", b"SK"), at))


def _has_run(flags: Flags) -> bool:
    """Whether these pairs (a multiple of four) have a run in them."""
    blocks, code = _run_blocks(flags)
    return bool(blocks) and _RUN_FLAGS in code.tobytes()


def _run_blocks(flags: Flags) -> tuple[list[int], Flags]:
    """The blocks of four pairs that a run may fill, with the next: wherever one begins it fills two
    neighbours, and few texts have such. Also the pairs' flags of base64."""
    import numpy as np

    code: Flags = flags & np.uint16(_CODE)
    full = code.view(np.uint64) == _BLOCK_FLAGS
    return (full[:-1] & full[1:]).nonzero()[0].tolist(), code


@cache
def _marks() -> frozenset[bytes]:
    return frozenset("".join(one).encode() for mark in marks() for one in product(*mark))


@cache
def _table() -> Flags:
    import numpy as np

    table = np.zeros(1 << 16, dtype=np.uint16)
    for one, two in product(_CODE_BYTES, repeat=2):
        table[one | two << 8] |= _CODE
    groups: list[list[set[int]]] = [[set(), set()] for _ in range(_GROUPS)]
    for mark in sorted(marks()):
        pairs = [{one | two << 8 for one, two in product(*half)} for half in _halves(mark)]
        # Where it adds the fewest pairs of one mark's start and another's end.
        best = min(groups, key=lambda group: _crossings(group, pairs) - _crossings(group, []))
        best[0] |= pairs[0]
        best[1] |= pairs[1]
    for number, (starts, ends) in enumerate(groups):
        table[list(starts)] |= 1 << number
        table[list(ends)] |= 1 << (8 + number)
    return table


def _halves(mark: tuple[str, ...]) -> list[list[bytes]]:
    sets = [one.encode() for one in mark]
    return [sets[:2], sets[2:]]


def _crossings(group: list[set[int]], pairs: list[set[int]]) -> int:
    starts, ends = (known | new for known, new in zip(group, pairs or [set(), set()], strict=True))
    return len(starts) * len(ends)
