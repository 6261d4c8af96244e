"""The witness beside the log: what it saw is told for as long as the log does not have it."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from agentloop.store.log import Log
from agentloop.store.query import Draft


def append(path: Path, *keys: str) -> None:
    log = Log(path)
    log.append([Draft(kind="note", key=key, body=1) for key in keys])
    log.close()


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """A log whose last two entries were lost."""
    path = tmp_path / "log.db"
    append(path, "a", "b", "c", "d")
    db = sqlite3.connect(path)
    db.execute("DELETE FROM entry WHERE seq > 2")
    db.commit()
    db.close()
    return path


def problems(path: Path) -> list[str]:
    log = Log(path)
    _, found = log.verify()
    log.close()
    return found


def test_what_is_appended_later_does_not_hide_a_loss(cut: Path) -> None:
    assert problems(cut) == ["entries 3 to 4 are missing at the end"]
    append(cut, "e")
    assert problems(cut) == ["entries 4 to 4 are missing at the end"]
    append(cut, "f", "g")
    assert problems(cut) == ["entry 4 is not the one that was written there"]
    append(cut, "h")
    assert problems(cut) == ["entry 4 is not the one that was written there"]


def test_a_witness_that_lags_or_is_gone_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    append(path, "a")
    shutil.copy(tmp_path / "log.head", tmp_path / "old")
    append(path, "b")
    newer = (tmp_path / "log.head").read_bytes()
    shutil.copy(tmp_path / "old", tmp_path / "log.head")
    assert problems(path) == []
    append(path, "c")
    assert (tmp_path / "log.head").read_bytes() not in (newer, (tmp_path / "old").read_bytes())
    (tmp_path / "log.head").unlink()
    append(path, "d")
    assert problems(path) == []
    (tmp_path / "log.db").unlink()
    append(path, "x")
    assert problems(path) == ["entries 2 to 4 are missing at the end"]
