"""Freeze rows into an immutable dataset directory, and read it back.

In: rows, a spec that says how they came about, and the episodes that it took, as they were. Out:
`<root>/<id>/rows.jsonl` (beside `chosen.jsonl`) with a `manifest.json`, and the `Dataset` record.
The same rows, spec and episodes always give the same bytes and the same id, so freezing twice is
one dataset. Rows that hold a secret are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from agentloop.errors import UsageError
from agentloop.files import new_directory, read_manifest
from agentloop.records import Dataset, Json, Row, Score, artifact_id, record
from agentloop.trajectories import codec, rows_file
from agentloop.trajectories.redact import Redactor

CHOSEN = "chosen.jsonl"


@record
class Frozen:
    """An episode as it was: what a later score or a rebuilt index could change."""

    id: str
    score: Score | None
    share: float | None = None
    """How much of its group was right."""
    nearness: float | None = None
    """Cosine to the text it was chosen by."""
    chosen: bool = True
    """Or not, and credit compared the chosen of its group with it."""


def freeze(
    rows: Sequence[Row], spec: dict[str, Json], root: Path, *, redact: Redactor | None = None,
    chosen: Sequence[Frozen] = (),
) -> Dataset:  # fmt: skip
    """Write the dataset below `root`, whole or not at all; one that is there is checked and kept.
    `redact` (default: what the environment holds) tells what is secret.

    Raises `UsageError` without rows or with a secret in one, `StoreError` when the disk refuses or
    a dataset with this id was damaged.
    """
    if not rows:
        raise UsageError("there are no rows to freeze; collect more successful episodes first")
    lines = rows_file.lines_of(rows)
    kept = [codec.encode(one) for one in sorted(chosen, key=lambda one: one.id)]
    if kept:
        spec = {**spec, "chosen_sha256": _sha256(kept)}
    every = (*lines, *kept, codec.encode(spec))
    rows_file.refuse_secrets(every, redact or Redactor.from_environment())
    dataset = Dataset(
        rows=len(rows),
        tokens=sum(len(segment) for row in rows for segment in row.segments),
        sha256=_sha256(lines),
        episodes=tuple(sorted({row.episode for row in rows})),
        spec=spec,
    )
    target = root / dataset_id(dataset)
    if not target.exists():
        # Another process may freeze the same content first; the check below covers both.
        with suppress(FileExistsError), new_directory(target) as draft:
            if kept:
                (draft / CHOSEN).write_bytes(b"".join(line + b"\n" for line in kept))
            rows_file.write_rows(draft, lines, {"dataset": codec.to_json(dataset)})
    read_manifest(target)
    return dataset


def sha256_of(rows: Sequence[Row]) -> str:
    """What `Dataset.sha256` is when these are its rows, in any order."""
    return _sha256(rows_file.lines_of(rows))


def dataset_id(dataset: Dataset) -> str:
    """The directory's name; equal content has an equal id."""
    return artifact_id(dataset)


def rows_path(root: Path, dataset: Dataset) -> Path:
    """Where the rows of `dataset` are: what `TrainingJob.dataset` takes."""
    return root / dataset_id(dataset) / rows_file.NAME


def load_rows(path: Path) -> list[Row]:
    """The rows of a frozen file; raises `StoreError` when it is not what was frozen."""
    return rows_file.read_rows(path)


def read_frozen(directory: Path) -> tuple[Dataset, list[Frozen]]:
    """The dataset in `directory` and the episodes that it took, by id. Raises `UsageError` when
    none were frozen with it, `StoreError` when it is not what was frozen."""
    manifest = read_manifest(directory)
    dataset = codec.from_json(Dataset, manifest.get("dataset"))
    if CHOSEN not in manifest["files"]:
        raise UsageError(f"`{directory}` keeps no chosen episodes; freeze it from a recipe")
    lines = (directory / CHOSEN).read_bytes().splitlines()
    return dataset, [codec.decode(Frozen, line) for line in lines]


def _sha256(lines: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line + b"\n")
    return digest.hexdigest()
