"""Freeze rows into an immutable dataset directory, and read it back.

In: rows, and a spec that says how they were chosen. Out: `<root>/<id>/rows.jsonl` with a
`manifest.json`, and the `Dataset` record. The same rows and spec always give the same bytes and
the same id, so freezing twice is one dataset. Rows that hold a secret are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from agentloop.errors import UsageError
from agentloop.files import new_directory, read_manifest
from agentloop.records import Dataset, Json, Row, artifact_id
from agentloop.trajectories import codec, rows_file
from agentloop.trajectories.redact import Redactor


def freeze(
    rows: Sequence[Row], spec: dict[str, Json], root: Path, *, redact: Redactor | None = None
) -> Dataset:
    """Write the dataset below `root`, whole or not at all; one that is there is checked and kept.
    `redact` (default: what the environment holds) tells what is secret.

    Raises `UsageError` without rows or with a secret in one, `StoreError` when the disk refuses or
    a dataset with this id was damaged.
    """
    if not rows:
        raise UsageError("there are no rows to freeze; collect more successful episodes first")
    lines = rows_file.lines_of(rows)
    rows_file.refuse_secrets((*lines, codec.encode(spec)), redact or Redactor.from_environment())
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line + b"\n")
    dataset = Dataset(
        rows=len(rows),
        tokens=sum(len(segment) for row in rows for segment in row.segments),
        sha256=digest.hexdigest(),
        episodes=tuple(sorted({row.episode for row in rows})),
        spec=spec,
    )
    target = root / dataset_id(dataset)
    if not target.exists():
        # Another process may freeze the same content first; the check below covers both.
        with suppress(FileExistsError), new_directory(target) as draft:
            rows_file.write_rows(draft, lines, {"dataset": codec.to_json(dataset)})
    read_manifest(target)
    return dataset


def dataset_id(dataset: Dataset) -> str:
    """The directory's name; equal content has an equal id."""
    return artifact_id(dataset)


def rows_path(root: Path, dataset: Dataset) -> Path:
    """Where the rows of `dataset` are: what `TrainingJob.dataset` takes."""
    return root / dataset_id(dataset) / rows_file.NAME


def load_rows(path: Path) -> list[Row]:
    """The rows of a frozen file; raises `StoreError` when it is not what was frozen."""
    return rows_file.read_rows(path)
