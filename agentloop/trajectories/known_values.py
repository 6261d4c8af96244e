"""Values that are known to be secret, found in any text in which they stand, whole or cut.

In: names and values, then texts; out: spans. A value is looked for as it is and as it may have been
written: escaped for JSON (twice over, too), for an address, in base64 at any of the three offsets.
The cost does not grow with the number of values: a text of which no aligned block of four
bytes is in any of them has none of them, and only those that share a block are searched for.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

from agentloop.trajectories.secret_shapes import Span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIN_LENGTH = 8
"""Shorter values are too common as words to be replaced everywhere."""
_BLOCK = 4
_MULTIPLIER = 2654435761
"""Knuth's multiplicative hash: 2**32 over the golden ratio, a prime."""


class KnownValues:
    """Finds `secrets` (name to value); values shorter than `MIN_LENGTH` are passed over."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._forms: list[tuple[str, str]] = []  # what to look for, and its name
        self._bytes: list[bytes] = []
        self._whole: set[int] = set()  # those forms that are a value as it is
        self._blocks: dict[int, list[tuple[int, int]]] = {}  # of which form, and where in it
        for name, value in secrets.items():
            if len(value) >= MIN_LENGTH:
                for form in dict.fromkeys(_forms(value)):
                    self._add(form, name, whole=form == value)

    def __bool__(self) -> bool:
        return bool(self._forms)

    def suspects(self, data: bytes) -> bool:
        """Whether one of the values, or seven bytes of one, may be in `data` (UTF-8)."""
        if not self._forms or len(data) < _BLOCK:
            return False
        blocks, near = self._look(data)
        found: list[int] = blocks[near].tolist()
        if not self._blocks.keys().isdisjoint(found):
            for number, block in zip(near.nonzero()[0].tolist(), found, strict=True):
                for at, offset in self._blocks.get(block, ()):
                    if self._stands(data, number * _BLOCK, at, offset):
                        return True
        return bool(self._halves) and any(half in data for half in self._halves)

    def spans(self, texts: list[str]) -> Iterator[Span]:
        """Where values stand in the texts put together. One may begin in one text and end in
        another; the end of a text that is half of a value, or more, counts too."""
        joined = "".join(texts)
        near = self._near(joined)
        for at in near:
            form, name = self._forms[at]
            start = joined.find(form)
            while start >= 0:
                yield start, start + len(form), name
                start = joined.find(form, start + 1)
        whole = [self._forms[at] for at in self._whole if at in near]
        for end, text in zip(accumulate(map(len, texts)), texts, strict=True):
            for value, name in whole:
                if size := _overlap(text, value):
                    yield end - size, end, name
                if size := _overlap(value, text, needed=len(value)):
                    yield end - len(text), end - len(text) + size, name

    def _add(self, form: str, name: str, *, whole: bool) -> None:
        at = len(self._forms)
        self._forms.append((form, name))
        if whole:
            self._whole.add(at)
        data = _utf8(form)
        self._bytes.append(data)
        # Of a value that is cut, any block may be the one that is aligned.
        starts = range(len(data) - _BLOCK + 1) if whole else range(_BLOCK)
        for start in starts:
            block = int.from_bytes(data[start : start + _BLOCK], "little")
            self._blocks.setdefault(block, []).append((at, start))

    def _stands(self, data: bytes, place: int, at: int, offset: int) -> bool:
        """Whether the block at byte `offset` of form `at`, found at `place`, is part of the whole
        form there, or for a value as it is of seven bytes of it."""
        form = self._bytes[at]
        if at not in self._whole:
            return data.startswith(form, max(place - offset, 0))
        before = after = 0  # the block itself is equal; how far are its neighbours?
        while before < min(_BLOCK - 1, place, offset) and (
            data[place - before - 1] == form[offset - before - 1]
        ):
            before += 1
        rest = min(len(data) - place, len(form) - offset, 2 * _BLOCK - 1) - _BLOCK
        while after < rest and data[place + _BLOCK + after] == form[offset + _BLOCK + after]:
            after += 1
        return before + after >= _BLOCK - 1

    def _near(self, text: str) -> set[int]:
        """The forms that share an aligned block with `text`."""
        data = _utf8(text)
        view = memoryview(data)[: len(data) // _BLOCK * _BLOCK].cast("I")
        return {at for block in view if block in self._blocks for at, _ in self._blocks[block]}

    @cached_property
    def _look(self) -> Callable[[bytes], tuple[NDArray[np.uint32], NDArray[np.bool_]]]:
        """Gives the aligned blocks of a text, and which of them may be a value's: by a hash, of
        which few are taken: what they let through is looked up one by one."""
        import numpy as np  # not before there is something to scan

        bits = max(16, (64 * len(self._blocks)).bit_length())
        kind = np.dtype("<u4")
        # Arrays of no dimension: numpy converts a scalar anew each time, for half of the cost.
        multiplier, shift = np.array(_MULTIPLIER, kind), np.array(32 - bits, kind)
        table = np.zeros(1 << bits, dtype=bool)
        table[np.fromiter(self._blocks, kind) * multiplier >> shift] = True

        def look(data: bytes) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
            blocks = np.frombuffer(data, kind, len(data) // _BLOCK)
            hashes = blocks * multiplier
            hashes >>= shift
            return blocks, table.take(hashes, mode="clip")

        return look

    @cached_property
    def _halves(self) -> list[bytes]:
        """Of values that are too short for a block in each half: any cut leaves one of these."""
        every = [self._bytes[at] for at in self._whole]
        short = [data for data in every if len(data) < 2 * (2 * _BLOCK - 1)]
        return [half for data in short for half in (data[: _half(data)], data[len(data) // 2 :])]


def _forms(value: str) -> Iterable[str]:
    yield value
    escaped = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    yield from escaped
    yield from (json.dumps(form)[1:-1] for form in escaped)
    yield quote(value, safe="", errors="surrogatepass")
    yield quote_plus(value, errors="surrogatepass")
    raw = _utf8(value)
    for offset, first in enumerate((0, 2, 3)):
        # The characters that the value alone decides, whatever stands before and after it.
        code = b64encode(bytes(offset) + raw)[first : (offset + len(raw)) * 8 // 6].decode()
        yield code
        yield code.replace("+", "-").replace("/", "_")
    for line in value.splitlines():
        if len(line) >= 2 * MIN_LENGTH and not line.startswith("-----"):
            yield line


def _overlap(left: str, right: str, *, needed: int = 0) -> int:
    """How many of the last characters of `left` are the first of `right`: at least `MIN_LENGTH`,
    and half of the value (`needed`, else `right`); 0 for none."""
    least = max(MIN_LENGTH, (needed or len(right)) // 2)
    for size in range(min(len(left), len(right)), least - 1, -1):
        if left.endswith(right[:size]):
            return size
    return 0


def _half(data: bytes) -> int:
    return (len(data) + 1) // 2


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
