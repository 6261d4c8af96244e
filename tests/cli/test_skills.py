"""`agentloop skills`: other agents' folders in and out, in sentences and in JSON."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_archives import DOCUMENT, KINDS

from agentloop.cli import run
from agentloop.records import Skill
from agentloop.store.archive import Archive
from agentloop.store.lives import states

Data = Callable[..., Any]
Refused = Callable[..., str]
SCRIPT = "def area(r: float) -> float:\n    return 3 * r * r\n"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Another agent's folder of two skills."""
    folder = tmp_path / ".claude" / "skills"
    for name in ("a", "circles"):
        (folder / name / "scripts").mkdir(parents=True)
        (folder / name / "SKILL.md").write_bytes(
            DOCUMENT.replace(b"name: a", b"name: " + name.encode())
        )
    (folder / "circles" / "scripts" / "area.py").write_text(SCRIPT)
    (folder / "circles" / "logo.png").write_bytes(b"\x89PNG\xff")
    (folder / "README.md").write_text("not a skill")
    return folder


def test_import_quarantines_and_export_gives_the_same_back(
    theirs: Path, tmp_path: Path, home: Path, data: Data
) -> None:
    told = data("skills", "import", "--from", str(theirs))
    assert [(one["name"], one["files"], one["new"]) for one in told["skills"]] == [
        ("a", 0, True), ("circles", 2, True),
    ]  # fmt: skip
    again = data("skills", "import", "circles", "--from", str(theirs))
    assert [(one["name"], one["new"]) for one in again["skills"]] == [("circles", False)]
    id = told["skills"][1]["id"]
    with Archive(home) as archive:
        step = states(archive.log)[id]
        assert (step.state, step.tainted) == ("quarantined", True)
        assert step.source.startswith("file/") and str(theirs) in step.reason
        assert archive.get(id, Skill).files["scripts/area.py"] == SCRIPT
    for target in ("out", "out.zip"):
        assert run(["skills", "export", id, str(tmp_path / target)]) == 0
        assert data("skills", "diff", str(theirs / "circles"), str(tmp_path / target))["same"]
    written = tmp_path / "out" / "circles"
    assert (written / "logo.png").read_bytes() == b"\x89PNG\xff"
    assert sorted(p.name for p in written.rglob("*")) == [
        "SKILL.md",
        "area.py",
        "logo.png",
        "scripts",
    ]


def test_list_and_show(
    theirs: Path, home: Path, data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data("skills", "import", "--from", str(theirs))
    listed = data("skills", "list")
    assert {(one["name"], one["state"]) for one in listed} >= {
        ("exact-arithmetic", "curated"), ("circles", "quarantined"),
    }  # fmt: skip
    [first, *_] = data("skills", "list", "--like", "multiply two large numbers")
    assert first["name"] == "exact-arithmetic"
    assert data("skills", "show", str(theirs / "circles"))["files"]["scripts/area.py"] == SCRIPT
    assert run(["skills", "list"]) == 0 == run(["skills", "show", "exact-arithmetic"])
    assert "exact-arithmetic" in capsys.readouterr().out


def test_validate_tells_all_and_ends_with_1(theirs: Path, tmp_path: Path, data: Data) -> None:
    bad = tmp_path / "bad.zip"
    bad.write_bytes(KINDS["zip symlink"])
    told = data("skills", "validate", str(theirs), str(bad), code=1)
    assert [(one["ok"], one["skills"]) for one in told] == [(True, ["a", "circles"]), (False, [])]
    assert "is no plain file" in told[1]["problem"]
    assert (
        run(["skills", "validate", str(theirs)]) == 0 and run(["skills", "validate", str(bad)]) == 1
    )


def test_diff_names_the_lines(theirs: Path, data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    told = data("skills", "diff", str(theirs / "a"), str(theirs / "circles"))
    assert not told["same"] and "-name: a" in told["diff"] and "+def area(r" in told["diff"]
    assert run(["skills", "diff", str(theirs / "a"), str(theirs / "a")]) == 0
    assert "no difference" in capsys.readouterr().out


def test_a_dry_run_makes_no_home(theirs: Path, home: Path, data: Data) -> None:
    told = data("skills", "import", "--from", str(theirs), "--dry-run")
    assert not told["done"] and len(told["skills"]) == 2 and not (home / "log.db").exists()


def test_errors_are_sentences(theirs: Path, tmp_path: Path, home: Path, refused: Refused) -> None:
    (theirs / "a" / "link").symlink_to("/etc/passwd")
    assert "`link` is a link" in refused("skills", "import", "--from", str(theirs))
    assert "did you mean `circles`?" in refused("skills", "import", "circle", "--from", str(theirs))
    assert "no `SKILL.md`" in refused("skills", "import", "--from", str(tmp_path))
    assert "cannot be read" in refused("skills", "import", "--from", str(tmp_path / "none"))
    (tmp_path / "text").write_text("hello")
    assert "a .zip nor a .tar.gz" in refused("skills", "import", "--from", str(tmp_path / "text"))
    (theirs / "a" / "link").unlink()
    assert "holds 2 skills" in refused("skills", "show", str(theirs))
    assert not (home / "log.db").exists()
