"""Directories that appear whole or not at all, and files that are checked before they are used.

In: a target path and a function that fills a directory. Out: the directory, flushed and renamed
into place, so that a crash leaves either nothing or everything. A `manifest.json` names the size
and sha256 of every other file. Renaming never replaces anything: artifacts are immutable.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentloop.errors import StoreError

MANIFEST = "manifest.json"


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes; raises `StoreError` when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"`{path}` cannot be read: {error.strerror}") from error


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` to fill; on leaving it is flushed and renamed to `path`.

    Nothing is left behind when the body fails. Raises `FileExistsError` when `path` is already
    there (as it is after a race, whose winner's directory stays), `StoreError` on a full disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise StoreError(f"`{path}` cannot be written: {error.strerror}") from error
    try:
        yield draft
        for entry in (*sorted(draft.rglob("*")), draft):
            _flush(entry)
        if path.exists():
            raise FileExistsError(f"`{path}` exists")
        draft.rename(path)
        _flush(path.parent)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, OSError) and path.exists():
            raise FileExistsError(f"`{path}` exists") from error
        if isinstance(error, OSError):
            raise StoreError(f"`{path}` cannot be written: {error.strerror}") from error
        raise


def discard_drafts(path: Path) -> None:
    """Remove what writers of `path` that were killed had begun. Nobody may be writing it now."""
    for draft in path.parent.glob(f".{glob.escape(path.name)}.*"):
        shutil.rmtree(draft, ignore_errors=True)


def write_manifest(directory: Path, about: dict[str, Any]) -> None:
    """Write `manifest.json`: what the directory is, and size and sha256 of its files."""
    files = {
        entry.relative_to(directory).as_posix(): {
            "bytes": entry.stat().st_size,
            "sha256": sha256_of(entry),
        }
        for entry in sorted(directory.rglob("*"))
        if entry.is_file()
    }
    text = json.dumps({**about, "files": files}, indent=1, sort_keys=True)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of `directory` after each of its files was compared with it.

    Raises `StoreError` that names the first file that is missing, changed or not listed.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        expected = {name: entry["sha256"] for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"`{directory / MANIFEST}` is missing or not a manifest") from error
    present = {
        entry.relative_to(directory).as_posix(): entry
        for entry in directory.rglob("*")
        if not entry.is_dir() and entry != directory / MANIFEST
    }
    for name in sorted(expected.keys() | present.keys()):
        if name not in present:
            raise StoreError(f"`{directory / name}` is missing; restore it or make it again")
        if name not in expected or present[name].is_symlink():
            raise StoreError(f"`{directory / name}` is not part of the artifact; remove it")
        if sha256_of(present[name]) != expected[name]:
            raise StoreError(f"`{directory / name}` was changed after it was written (sha256)")
    return dict(manifest)


def _flush(entry: Path) -> None:
    """fsync a file or a directory."""
    handle = os.open(entry, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
