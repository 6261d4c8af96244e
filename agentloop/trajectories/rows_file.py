"""The frozen rows file: one `Row` a line, beside a manifest with its sha256.

In: rows, or the path of a file. Out: a directory's two files, or rows. It is here, and not in a
stage, because one stage writes the file and another, in its own process, reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from agentloop.errors import StoreError, UsageError
from agentloop.files import read_manifest, write_manifest
from agentloop.records import Row
from agentloop.trajectories import codec
from agentloop.trajectories.redact import Redactor

NAME = "rows.jsonl"


def lines_of(rows: Sequence[Row]) -> list[bytes]:
    """Encoded rows in an order that depends on their content alone."""
    return sorted(codec.encode(row) for row in rows)


def refuse_secrets(lines: Iterable[bytes], redact: Redactor) -> None:
    """Raise `UsageError` when the text of a line holds a secret: the last door before weights."""
    for line in filter(redact.suspects, lines):
        row = json.loads(line)
        if redact(row) is not row:
            raise UsageError(
                f"a training row (episode `{row.get('episode', 'none')}`) holds what looks like a "
                "secret; take it out of the instruction or the skills that it is trained under"
            )


def write_rows(directory: Path, lines: Sequence[bytes], about: dict[str, Any]) -> None:
    """Write `rows.jsonl` and its manifest into `directory`."""
    (directory / NAME).write_bytes(b"".join(line + b"\n" for line in lines))
    write_manifest(directory, about)


def read_rows(path: Path) -> list[Row]:
    """The rows of a frozen file, after its hash was checked.

    Raises `UsageError` when there is no such file, `StoreError` when it is not what was frozen
    or a line is not a row (with its number).
    """
    if not path.is_file():
        raise UsageError(f"`{path}` does not exist; freeze a dataset first")
    manifest = read_manifest(path.parent)
    if path.name not in manifest["files"]:
        raise StoreError(f"`{path}` is not listed in the manifest beside it")
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            rows.append(codec.decode(Row, line))
        except StoreError as error:
            raise StoreError(f"`{path}` line {number}: {error}") from error
    return rows
