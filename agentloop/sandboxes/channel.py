"""The host's side of `child.py`: a job goes in, `hello` and `ready` come back, then, of a session,
`loaded` and answers.

In: two streams that lead to the child, whatever carries them. Out: the bytes of a job and a
`ports.Session`. Decision: one line at a time, read with a limit, and nothing may stand in the
stream when a question is asked, so code cannot flood the host, and an answer that it wrote ahead
ends the session once it has arrived. Whoever must know that an answer is to their question puts a
fresh id into it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from agentloop.errors import SandboxError, SessionEnded, UsageError
from agentloop.records import Program

LINE = 64 * 1024
"""Bytes of a question or an answer at most."""
MOST_BYTES = 64 * 2**20
"""Of a program and its files."""
SOURCE = Path(__file__).with_name("child.py").read_text(encoding="utf-8")
PYTHON_FLAGS = ("-I", "-S", "-B", "-u", "-X", "utf8")
Mode = Literal["snippet", "program", "session"]


def child_arguments(requests: int, replies: int) -> list[str]:
    """What follows the interpreter in the command line of a child."""
    return [*PYTHON_FLAGS, "-c", SOURCE, str(requests), str(replies)]


def job(program: Program, mode: Mode, limits: dict[str, int]) -> bytes:
    """A job as bytes: `limits` are names of `RLIMIT_...` and their values. Raises `UsageError` for
    file names that are not plain, and for more than `MOST_BYTES`."""
    for name in program.files:
        if not name or name in (".", "..") or "/" in name or "\0" in name or len(name) > 255:
            raise UsageError(f"`{name[:80]}` is no file name; a program's files lie in one folder")
    if "\0" in "".join(program.arguments):
        raise UsageError("an argument of a program cannot hold NUL")
    limit = " ".join(f"{name}={value}" for name, value in limits.items())
    words = [text.encode(errors="replace") for text in (mode, limit, *program.arguments)]
    parts = [program.code.encode(errors="surrogatepass")]  # no text: the code's own error
    for name, data in program.files.items():
        parts += [name.encode(errors="replace"), data]
    data = _frames(words) + _frames(parts)
    if len(data) > MOST_BYTES:
        raise UsageError(f"a program of {len(data)} bytes with its files; at most {MOST_BYTES}")
    return data


def _frames(parts: list[bytes]) -> bytes:
    sized = (len(part).to_bytes(4, "big") + part for part in parts)
    return len(parts).to_bytes(4, "big") + b"".join(sized)


async def expect(reader: asyncio.StreamReader, word: str) -> None:
    """Read one word of the handshake. Raises `SandboxError` when it does not come."""
    try:
        line = await reader.readuntil()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as error:
        raise SandboxError(f"it ended before it was {word!r}") from error
    if line != word.encode() + b"\n":
        raise SandboxError(f"it said {line[:80]!r} instead of {word!r}")


class LineSession:
    """A `ports.Session` over a child's streams; `reader` must have been made with `limit=LINE`.
    `said` gives the last line of the program's stderr, `most` the seconds of an answer."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        said: Callable[[], str],
        most: float,
    ) -> None:
        self._reader, self._writer, self._said, self._most = reader, writer, said, most
        self._ended, self._loaded = "", False

    async def ask(self, line: str, *, seconds: float) -> str:
        """As `ports.Session.ask`."""
        if self._ended:
            raise SessionEnded(self._ended)
        question = one_question(line)
        try:
            return await self._exchange(question, min(seconds, self._most))
        except SessionEnded as error:
            self._ended = str(error)
            raise
        except BaseException:
            self._ended = "a question was left without its answer"
            raise

    async def _exchange(self, question: bytes, seconds: float) -> str:
        try:
            async with asyncio.timeout(seconds):
                if not self._loaded:
                    self._loaded = await self._reader.readuntil() == b"loaded\n"
                await asyncio.sleep(0)  # take in what has arrived
                if _waiting(self._reader) or not self._loaded:
                    raise SessionEnded("it wrote before it was asked")
                self._writer.write(question)
                await self._writer.drain()
                answer = await self._reader.readuntil()
        except TimeoutError:
            raise SessionEnded(f"no answer within {seconds:g} s") from None
        except asyncio.LimitOverrunError:
            raise SessionEnded(f"an answer of more than {LINE} bytes") from None
        except (asyncio.IncompleteReadError, OSError):
            await asyncio.sleep(0.05)  # its last words may still be on their way
            raise SessionEnded(f"it ended early: {self._said() or 'without a word'}") from None
        if _waiting(self._reader):
            raise SessionEnded("it wrote more than its answer")
        try:
            return answer[:-1].decode()
        except UnicodeDecodeError:
            raise SessionEnded("an answer that is no UTF-8") from None


def _waiting(reader: asyncio.StreamReader) -> bool:
    """Has it bytes that nobody read? asyncio has no public way to look."""
    return bool(reader._buffer)  # type: ignore[attr-defined]


def one_question(line: str) -> bytes:
    """`line` as sent. Raises `UsageError` when it is not one line of `LINE` bytes at most."""
    data = line.encode(errors="replace") + b"\n"
    if "\n" in line or len(data) > LINE:
        raise UsageError(f"a question is one line of at most {LINE} bytes; got {len(data)} bytes")
    return data
