"""Text that a sandbox printed, kept within a limit.

In: bytes, as they come. Out: the head and the tail, and a line between them that says how much is
missing, so that both what was first and what was last said can be read.
"""

from __future__ import annotations

import asyncio


class Kept:
    """Keeps the head and the tail of what is added, together `limit` bytes at most."""

    def __init__(self, limit: int) -> None:
        self.total = 0
        self._half = limit // 2
        self._head, self._tail = bytearray(), bytearray()

    def add(self, data: bytes) -> None:
        """More was printed."""
        self.total += len(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        del self._tail[: -self._half]

    def write(self, text: str) -> None:
        """More was printed, as text."""
        self.add(text.encode(errors="replace"))

    @property
    def left_out(self) -> int:
        """Bytes that were printed and not kept."""
        return self.total - len(self._head) - len(self._tail)

    def text(self) -> str:
        """What was kept; bytes that are no UTF-8 become U+FFFD."""
        if not self.left_out:
            return (self._head + self._tail).decode(errors="replace")
        head, tail = (part.decode(errors="ignore") for part in (self._head, self._tail))
        return f"{head}\n... {self.left_out} bytes left out ...\n{tail}"

    def last_line(self) -> str:
        """The last line that says anything, 500 characters at most."""
        return one_line((self.text().strip().splitlines() or [""])[-1])


async def drain(stream: asyncio.StreamReader, kept: Kept, most: int) -> None:
    """Read `stream` until it ends or `most` bytes were printed."""
    while kept.total <= most and (data := await stream.read(65536)):
        kept.add(data)


def one_line(text: str) -> str:
    """`text` as a line of 500 printable characters at most, for an error: it may be code's own, and
    steers no terminal."""
    return "".join(one if one.isprintable() else " " for one in text[:500]).strip()
