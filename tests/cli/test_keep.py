"""What is kept: search, rollback, verify, reindex, a person's edit, an exported skill."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_workflow

from agentloop.cli import run
from agentloop.records import Bundle, Instruction
from agentloop.store.archive import Archive

Data = Callable[..., Any]


@pytest.fixture
def used(cycled: tuple[str, str], tmp_path: Path) -> tuple[str, str]:
    """(workflow, home): a copy of the cycled home, to be changed."""
    shutil.copytree(cycled[1], tmp_path / "home")
    return cycled[0], str(tmp_path / "home")


def test_search_finds_by_meaning(used: tuple[str, str], data: Data) -> None:
    hits = data("search", "Multiply 71 by 121.", "-k", "4", "--home", used[1])
    assert len(hits) == 4
    assert [hit["distance"] for hit in hits] == sorted(hit["distance"] for hit in hits)
    assert "Multiply 71" in hits[0]["text"]
    failed = data("search", "Multiply", "--failed", "-k", "3", "--home", used[1])
    assert {hit["state"] for hit in failed} == {"failed"}
    [skill] = data("search", "products", "--kind", "skill", "-k", "1", "--home", used[1])
    assert skill["id"].startswith("skill-") and skill["state"] == ""


def test_rollback_is_one_command_and_one_row(used: tuple[str, str], data: Data) -> None:
    workflow, home = used
    before = data("store", "verify", "--home", home)["rows"]
    serving = data("inspect", "bundles", "--home", home)
    back = data("rollback", workflow, "--home", home)
    assert [b["id"] for b in serving if b["alias"]] == [back["from"]]
    assert data("store", "verify", "--home", home) == {
        "ok": True, "rows": before + 1, "problems": [],
    }  # fmt: skip
    assert data("eval", workflow, "--n", "12", "--home", home)["bundle"] == back["to"]


def test_damage_is_found_and_said(used: tuple[str, str], data: Data) -> None:
    with sqlite3.connect(Path(used[1]) / "log.db") as db:
        db.execute("PRAGMA writable_schema = ON")
        for (trigger,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            db.execute(f'DROP TRIGGER "{trigger}"')
        db.execute("UPDATE entry SET scope = 'other' WHERE seq = 5")
    db.close()
    told = data("store", "verify", "--home", used[1], code=1)
    assert not told["ok"] and "5" in told["problems"][0]
    assert run(["store", "verify", "--home", used[1]]) == 1


def test_reindex_reads_the_whole_log(used: tuple[str, str], data: Data) -> None:
    rows = data("store", "reindex", "--dry-run", "--home", used[1])
    made = data("store", "reindex", "--home", used[1])
    assert not rows["done"] and made["done"] and made["rows"] > 0
    assert data("search", "Multiply", "-k", "1", "--home", used[1])


@pytest.mark.integration
def test_looking_changes_nothing(used: tuple[str, str], data: Data) -> None:
    """Each command in a process of its own: Chroma rewrites files of segments it merely opens."""
    data("search", "Multiply", "-k", "1", "--home", used[1])
    for _ in range(2):
        command = [sys.executable, "-m", "agentloop", "store", "verify", "--home", used[1]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "sound" in done.stdout, done.stdout


def test_an_edit_serves_until_it_is_rolled_back(used: tuple[str, str], tmp_path: Path) -> None:
    workflow, home = used
    (tmp_path / "text").write_text("Always use the python tool.\n")
    assert run(["instructions", "edit", workflow, str(tmp_path / "text"), "--home", home]) == 0
    with Archive(Path(home)) as archive:
        serving = archive.alias("tiny/champion")
        assert serving is not None
        bundle = archive.get(serving.bundle, Bundle)
        text = archive.get(bundle.instruction, Instruction)
        assert text.text == "Always use the python tool." and text.operator == "edit"
        assert bundle.policies  # the rest of the bundle stays
    assert run(["rollback", workflow, "--home", home]) == 0
    missing = str(tmp_path / "missing")
    assert run(["instructions", "edit", workflow, missing, "--home", home]) == 2


def test_an_exported_skill_is_an_agent_skills_folder(
    used: tuple[str, str], tmp_path: Path, data: Data
) -> None:
    [skill, *_] = data("inspect", "skills", "--home", used[1])
    assert run(["skills", "export", skill["id"], str(tmp_path / "out"), "--home", used[1]]) == 0
    written = (tmp_path / "out" / skill["name"] / "SKILL.md").read_text()
    assert written == skill["document"]


def test_two_workflows_share_a_home(tmp_path: Path, home: Path, data: Data) -> None:
    for name in ("one", "two"):
        folder = tiny_workflow.make(tmp_path / name, name=name)
        assert data("run", str(folder), "--n", "1")["n"] == 1
    with Archive(home) as archive:
        assert set(archive.aliases()) == {"one/champion", "two/champion"}
