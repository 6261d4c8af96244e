"""A whole home, copied while it is in use, and put back: backup and restore.

Goes in: a home. Comes out: a directory with the log as one file, the policies and the datasets, and
a manifest of all of it; and from that a new home. Decision: the log is copied by SQLite's own
backup, which sees one state whatever others append meanwhile, and comes first, so that every
version it names is there when the files are copied. The index, training directories and checkpoints
are not kept: they are made again.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from agentloop.errors import StoreError, UsageError
from agentloop.files import MANIFEST, new_directory, read_manifest, write_manifest
from agentloop.records import artifact_id
from agentloop.store import head
from agentloop.store.artifacts import KINDS
from agentloop.store.chain import audit
from agentloop.store.sqlite import connect, guarded
from agentloop.trajectories.codec import from_json

FORMAT = 1
LOG = "log.db"
FOLDERS = ("policies", "datasets")
"""Artifacts that are files: each in a directory of its own, with a manifest."""


@dataclass(frozen=True)
class Copied:
    """What a copy holds; `problems` are artifacts that were damaged in the home and left out."""

    rows: int
    artifacts: int
    problems: tuple[str, ...] = ()


def backup(home: Path, target: Path) -> Copied:
    """Copy `home` to the new directory `target`, which appears whole or not at all and is verified
    before it does. Raises `UsageError` when it exists, `StoreError` when the log is damaged or the
    disk refuses."""
    _free(target)
    known = head.read(home / LOG)
    try:
        with new_directory(target) as draft:
            rows = _copy_log(home / LOG, draft / LOG, known)
            count, problems = copy_artifacts(home, draft)
            about = {"agentloop": "backup", "format": FORMAT, "rows": rows, "problems": problems}
            write_manifest(draft, about)
    except FileExistsError as error:
        raise UsageError(f"`{target}` exists; give a new directory") from error
    return Copied(rows, count, tuple(problems))


def restore(source: Path, home: Path) -> Copied:
    """Make the new home `home` from a backup, after every file of it was compared with its manifest
    and the log was walked. Raises `UsageError` when the home is there or `source` is no backup,
    `StoreError` when it is damaged."""
    if not (source / MANIFEST).is_file():
        raise UsageError(f"`{source}` is not a backup (no {MANIFEST} in it); give another")
    _free(home)
    about = read_manifest(source)
    if about.get("agentloop") != "backup" or about.get("format") != FORMAT:
        raise UsageError(f"`{source}` is not a backup of format {FORMAT}")
    if home.is_dir():
        home.rmdir()  # empty; the copy is renamed into its place
    try:
        with new_directory(home) as draft:
            rows = _copy_log(source / LOG, draft / LOG, None)
            if rows != about.get("rows"):
                raise StoreError(f"`{source}` has {rows} entries instead of {about.get('rows')}")
            count, problems = copy_artifacts(source, draft)
            draft.chmod(0o700)
    except FileExistsError as error:
        raise UsageError(f"`{home}` exists; give a new home") from error
    return Copied(rows, count, tuple(problems))


def damaged(home: Path) -> list[str]:
    """What is wrong with the policies and datasets of a home."""
    problems = []
    for directory in _directories(home):
        try:
            _check(directory)
        except StoreError as error:
            problems.append(str(error))
    return problems


def _check(directory: Path) -> None:
    """Raises `StoreError` unless it holds what its manifest says, and that has its name."""
    about = read_manifest(directory)
    for kind in ("policy", "dataset"):
        if kind in about and artifact_id(from_json(KINDS[kind], about[kind])) != directory.name:
            raise StoreError(f"`{directory}` holds another {kind}; restore it or make it again")


def _copy_log(source: Path, target: Path, known: tuple[int, bytes] | None) -> int:
    with guarded(source):
        # Not by `connect`, which would make the file and its WAL where there is none.
        address = f"{source.resolve().as_uri()}?mode=ro"
        with (
            closing(sqlite3.connect(address, uri=True, timeout=30)) as db,
            closing(connect(target)) as copy,
        ):
            db.backup(copy)
    with guarded(target), closing(connect(target)) as copy:
        rows, problems = audit(copy, known)
        last = copy.execute("SELECT seq, hash FROM entry ORDER BY seq DESC LIMIT 1").fetchone()
        copy.execute("PRAGMA journal_mode=DELETE").fetchall()  # one file
    if problems:
        raise StoreError(
            f"the log `{source}` is damaged ({problems[0]}); see: agentloop store salvage"
        )
    if last is not None:
        witness = head.Head(target)
        witness.note(*last)
        witness.close()
    return rows


def copy_artifacts(home: Path, target: Path) -> tuple[int, list[str]]:
    """Copy the policies and datasets that are what their manifests say: how many these are, and
    what is wrong with the others."""
    count, problems = 0, list[str]()
    for directory in _directories(home):
        copy = target / directory.relative_to(home)
        try:
            _check(directory)
            shutil.copytree(directory, copy, symlinks=True)
            _check(copy)
        except StoreError as error:
            shutil.rmtree(copy, ignore_errors=True)
            problems.append(str(error))
        else:
            count += 1
    return count, problems


def _directories(home: Path) -> list[Path]:
    """Of all artifacts; drafts of a process that was killed begin with a point."""
    found = [path for name in FOLDERS for path in sorted((home / name).glob("*"))]
    return [path for path in found if path.is_dir() and not path.name.startswith(".")]


def _free(path: Path) -> None:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"`{path}` exists and is in use; give a new directory")
