"""A home is looked after by hand: verified, salvaged, exported, backed up, cleared."""

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentloop.cli import run

Cli = Callable[..., Any]


@pytest.fixture
def used(cycled: tuple[str, str], tmp_path: Path) -> str:
    """A copy of a home in which a cycle was run."""
    shutil.copytree(cycled[1], tmp_path / "used")
    return str(tmp_path / "used")


def break_entry(home: str, seq: int) -> None:
    db = sqlite3.connect(Path(home) / "log.db")
    db.execute("UPDATE entry SET at = at + 1 WHERE seq = ?", (seq,))
    db.commit()
    db.close()


def test_from_damage_to_a_sound_home(
    used: str, data: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = data("store", "verify", "--home", used)["rows"]
    break_entry(used, rows // 2)
    found = data("store", "verify", "--home", used, code=1)
    assert not found["ok"] and f"entry {rows // 2}" in found["problems"][0]
    assert run(["store", "verify", "--home", used]) == 1
    assert "agentloop store salvage NEW" in capsys.readouterr().out
    new = str(tmp_path / "new")
    kept = data("store", "salvage", new, "--home", used)
    assert kept["rows"] == rows // 2 - 1 and kept["beyond"] == rows - rows // 2 + 1
    assert data("store", "verify", "--home", new)["rows"] == kept["rows"]
    shutil.copyfile(os.devnull, Path(used) / "log.db")
    assert any("missing at the end" in one for one in
               data("store", "verify", "--home", used, code=1)["problems"])  # fmt: skip


def test_a_damaged_policy_is_told(used: str, data: Cli, tmp_path: Path) -> None:
    policy = next((Path(used) / "policies").iterdir())
    other = policy.with_name("policy-0123456789abcdef")
    shutil.copytree(policy, other)
    found = data("store", "verify", "--home", used, code=1)
    assert "holds another policy" in found["problems"][0]
    copied = data("store", "backup", str(tmp_path / "copy"), "--home", used, code=1)
    assert copied["problems"] == found["problems"]


def test_there_and_back_again(used: str, data: Cli, refused: Cli, tmp_path: Path) -> None:
    file, copy, new = (str(tmp_path / name) for name in ("all.jsonl.zst", "copy", "new"))
    count = data("store", "export", file, "--home", used)["rows"]
    assert data("store", "import", file, "--home", new, "--dry-run") == {
        "rows": count, "done": False
    }  # fmt: skip
    assert not Path(new).exists()
    assert data("store", "import", file, "--home", new)["new"] == count
    assert data("store", "import", file, "--home", new)["known"] == count
    assert data("inspect", "trajectories", "--home", new, "--limit", "500") == data(
        "inspect", "trajectories", "--home", used, "--limit", "500"
    )
    assert "exists; give another name" in refused("store", "export", file, "--home", used)
    Path(file).write_bytes(Path(file).read_bytes()[:-9])
    fresh = tmp_path / "fresh"
    assert "all.jsonl.zst" in refused("store", "import", file, "--home", str(fresh))
    assert not fresh.exists()
    rows = data("store", "backup", copy, "--home", used)["rows"]
    assert "in use" in refused("store", "restore", copy, "--home", new)
    assert data("store", "restore", copy, "--home", str(fresh))["rows"] == rows
    assert data("store", "verify", "--home", str(fresh))["ok"]
    assert "not a backup" in refused("store", "restore", used, "--home", str(tmp_path / "x"))


def test_what_nobody_needs_goes(used: str, data: Cli) -> None:
    old = Path(used) / "training" / "job-old"
    old.mkdir(parents=True, exist_ok=True)
    past = time.time() - 100 * 86400
    os.utime(old, (past, past))
    plan = data("store", "gc", "--home", used, "--dry-run")
    assert [one["what"] for one in plan["removed"]] == ["training/job-old"] and old.exists()
    assert not plan["done"]
    done = data("store", "gc", "--home", used)
    assert done["removed"] == plan["removed"] and not old.exists()
    assert data("store", "gc", "--home", used)["removed"] == []
    assert data("store", "verify", "--home", used)["ok"]
