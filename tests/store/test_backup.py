"""Backup and restore: one state of a home in use, verified; and never over a home that is there."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentloop.errors import StoreError, UsageError
from agentloop.files import new_directory, read_manifest, write_manifest
from agentloop.store.backup import backup, damaged, restore
from agentloop.store.log import Log
from agentloop.store.query import Draft

WRITER = """
import sys; from pathlib import Path
from agentloop.store.log import Log
from agentloop.store.query import Draft
log = Log(Path(sys.argv[1])); n = 0
while True:
    log.append([Draft(kind="note", key=f"{sys.argv[2]}/{n}", body="x" * 3000)]); n += 1
    print(n, flush=True)
"""


def artifact(home: Path, folder: str, name: str) -> Path:
    with new_directory(home / folder / name) as draft:
        (draft / "rows.jsonl").write_bytes(os.urandom(5000))
        write_manifest(draft, {})
    return home / folder / name


@pytest.fixture
def home(tmp_path: Path) -> Path:
    place = tmp_path / "home"
    place.mkdir()
    log = Log(place / "log.db")
    log.append([Draft(kind="note", key=str(n), body={"n": n}) for n in range(500)])
    log.close()
    artifact(place, "policies", "policy-1")
    artifact(place, "datasets", "dataset-1")
    (place / "logs").mkdir()
    return place


def rows(path: Path) -> list[object]:
    db = sqlite3.connect(path)
    found = db.execute("SELECT * FROM entry ORDER BY seq").fetchall()
    db.close()
    return found


def test_what_is_restored_is_what_was_there(home: Path, tmp_path: Path) -> None:
    copied = backup(home, tmp_path / "copy")
    assert (copied.rows, copied.artifacts, copied.problems) == (500, 2, ())
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "datasets", "log.db", "log.head", "manifest.json", "policies"
    ]  # fmt: skip
    assert restore(tmp_path / "copy", tmp_path / "new").rows == 500
    assert rows(tmp_path / "new" / "log.db") == rows(home / "log.db")
    for name in ("policies/policy-1", "datasets/dataset-1"):
        assert read_manifest(tmp_path / "new" / name) == read_manifest(home / name)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    log = Log(tmp_path / "new" / "log.db")
    assert log.append([Draft(kind="note", key="more", body=1)]) == [501]
    assert log.verify() == (501, [])
    log.close()


def test_one_state_while_others_write(home: Path, tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(home / "log.db"), str(n)],
            stdout=subprocess.PIPE, text=True,
        )
        for n in range(2)
    ]  # fmt: skip
    try:
        for one in writers:
            assert one.stdout is not None and one.stdout.readline()
        counts = []
        for number in range(3):
            counts.append(backup(home, tmp_path / f"copy-{number}").rows)
            time.sleep(0.05)
        assert 500 < counts[0] < counts[1] < counts[2]
    finally:
        for one in writers:
            one.kill()
            one.wait()
            assert one.stdout is not None
            one.stdout.close()
    for number, count in enumerate(counts):
        assert restore(tmp_path / f"copy-{number}", tmp_path / f"new-{number}").rows == count


def test_a_home_in_use_is_never_restored_over(home: Path, tmp_path: Path) -> None:
    backup(home, tmp_path / "copy")
    before = rows(home / "log.db")
    with pytest.raises(UsageError, match="in use"):
        restore(tmp_path / "copy", home)
    (tmp_path / "empty").mkdir()
    restore(tmp_path / "copy", tmp_path / "empty")
    with pytest.raises(UsageError, match="in use"):
        backup(home, tmp_path / "copy")
    with pytest.raises(UsageError, match="not a backup"):
        restore(home, tmp_path / "other")
    assert rows(home / "log.db") == before and not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["log.db", "policies/policy-1/rows.jsonl", "manifest.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_backup_makes_no_home(home: Path, tmp_path: Path, name: str, how: str) -> None:
    backup(home, tmp_path / "copy")
    path = tmp_path / "copy" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data if how == "flipped" else data[: len(data) // 2])
    with pytest.raises((StoreError, UsageError)):
        restore(tmp_path / "copy", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_damage_in_the_home_is_told(home: Path, tmp_path: Path) -> None:
    bad = artifact(home, "policies", "policy-2") / "rows.jsonl"
    bad.write_bytes(bad.read_bytes()[:-1])
    (home / "policies" / ".policy-3.abc").mkdir()  # of a process that was killed
    [problem] = damaged(home)
    assert "policy-2" in problem
    copied = backup(home, tmp_path / "copy")
    assert copied.artifacts == 2 and copied.problems == (problem,)
    assert restore(tmp_path / "copy", tmp_path / "new").artifacts == 2
    db = sqlite3.connect(home / "log.db")
    db.execute("UPDATE entry SET at = 0 WHERE seq = 7")
    db.commit()
    db.close()
    with pytest.raises(StoreError, match=r"entry 7 .*store salvage"):
        backup(home, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_missing_end_is_not_backed_up_as_whole(home: Path, tmp_path: Path) -> None:
    log = Log(home / "log.db")
    log.append([Draft(kind="note", key="last", body=1)])
    shutil.copytree(home, tmp_path / "crashed")
    log.close()
    (tmp_path / "crashed" / "log.db-wal").unlink()
    with pytest.raises(StoreError, match="missing at the end"):
        backup(tmp_path / "crashed", tmp_path / "copy")
