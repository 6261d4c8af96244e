"""Curated skills: an overlay of folders, every bad file an error that names it; export."""

from __future__ import annotations

from pathlib import Path

import pytest
from skill_world import successes

from agentloop.errors import UsageError
from agentloop.skills.induce import induce
from agentloop.skills.library import curated, export, load
from agentloop.workspace import Workspace, carried


def put(root: Path, name: str, text: str) -> Path:
    path = root / "skills" / name / "SKILL.md"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def doc(name: str, description: str = "d") -> str:
    return f"---\nname: {name}\ndescription: {description}\n---\n\nbody\n"


def test_a_users_skill_hides_a_carried_one(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    put(mine, "a", doc("a", "mine"))
    put(theirs, "a", doc("a", "theirs"))
    put(theirs, "b", doc("b"))
    skills = curated(Workspace((mine, theirs)))
    assert [(one.name, one.description) for one in skills] == [("a", "mine"), ("b", "d")]


def test_the_carried_skills_are_valid() -> None:
    assert curated(Workspace((carried(),)))


@pytest.mark.parametrize("text", ["no front matter", doc("other"), "\xff", doc("a") + "\x00"])
def test_a_bad_file_is_named(tmp_path: Path, text: str) -> None:
    path = put(tmp_path, "a", text)
    with pytest.raises(UsageError, match=str(path)):
        curated(Workspace((tmp_path,)))


def test_bytes_that_are_no_text_and_links_out_are_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "w", "a", "")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read"):
        load(path)
    path.unlink()
    secret = tmp_path / "secret.md"
    secret.write_text(doc("a"))
    path.symlink_to(secret)
    with pytest.raises(UsageError, match="link"):
        curated(Workspace((tmp_path / "w",)))


def test_export_round_trip_and_no_overwrite(tmp_path: Path) -> None:
    skill = induce(successes("gcd", 2))
    assert skill is not None
    path = export(skill, tmp_path)
    assert path == tmp_path / skill.name / "SKILL.md"
    assert load(path).document == skill.document
    assert export(skill, tmp_path) == path
    path.write_text("edited")
    with pytest.raises(UsageError, match="differs"):
        export(skill, tmp_path)
    assert [one.name for one in path.parent.iterdir()] == ["SKILL.md"]
