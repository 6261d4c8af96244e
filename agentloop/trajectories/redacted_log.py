"""What another process prints, into a file without secrets.

In: a child's output, as a pipe or line by line; out: the file. A child cannot be trusted to keep a
secret out of its tracebacks, and what it writes to a file of its own is on the disk before anybody
sees it: so it writes to a pipe, and a thread here copies. A pipe whose reader has died ends the
child's writing, not this file's secrecy.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from agentloop.errors import StoreError
from agentloop.trajectories.redact import Redactor

_LONGEST_LINE = 1 << 16
_KEY_LINES = 200
"""Lines of a private key; a block that never ends does not hide the rest of a log."""


class RedactedLines:
    """Lines of one output, in order, as they may be written."""

    def __init__(self, redact: Redactor) -> None:
        self._redact = redact
        self._hidden = 0

    def __call__(self, line: bytes) -> bytes:
        """The line without secrets; nothing for those within a private key."""
        if self._hidden:
            self._hidden = 0 if b"-----END" in line else self._hidden - 1
            return b""
        if not self._redact.suspects(line):
            return line
        text = line.decode("utf-8", "surrogateescape")
        clean = self._redact.text(text)
        if clean.rstrip("\r\n").endswith("[redacted:private_key]") and "-----END" not in text:
            self._hidden = _KEY_LINES
        end = "\n" if text.endswith("\n") and not clean.endswith("\n") else ""
        return (clean + end).encode("utf-8", "surrogateescape")


class RedactedLog:
    """A file that a child process appends to through `pipe`; give the child that descriptor and
    call `release` once it has it. Raises `StoreError` when the file cannot be opened."""

    def __init__(self, path: Path, redact: Redactor) -> None:
        self._lines, self._path = RedactedLines(redact), path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise StoreError(f"`{path}` cannot be written: {error.strerror}") from error
        self._start = self._file.tell()
        self._source, self.pipe = os.pipe()
        self._thread = threading.Thread(target=self._copy, name=f"log of {path.name}", daemon=True)
        self.failure: OSError | None = None
        """Why nothing is written any more; the child is still read, so that it goes on."""
        self._thread.start()

    def release(self) -> None:
        """Close this process's end, so that the copying ends with the child."""
        os.close(self.pipe)

    def wait(self, seconds: float = 1.0) -> None:
        """Until all that the child wrote is in the file, or so long."""
        self._thread.join(seconds)

    def end(self, size: int) -> str:
        """The last `size` bytes of what this child wrote, without what stood there before."""
        with self._path.open("rb") as file:
            file.seek(max(self._start, file.seek(0, os.SEEK_END) - size))
            return file.read().decode("utf-8", "replace").strip()

    def _copy(self) -> None:
        with os.fdopen(self._source, "rb") as source, self._file:
            while line := source.readline(_LONGEST_LINE):
                try:
                    if self.failure is None:
                        self._file.write(self._lines(line))
                except OSError as error:
                    self.failure = error
