"""`agentloop skills test|promote|retire|revoke`: a life by commands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from malicious_skills import skill

from agentloop.cli import run
from agentloop.skills.library import export

Data = Callable[..., Any]
Refused = Callable[..., str]
AREA = 'def area(r: int) -> int:\n    """Of a circle."""\n    return 3 * r * r\n'


def test_the_commands(home: Path, tmp_path: Path, data: Data, refused: Refused) -> None:
    case = '{"function": "area", "cases": [{"arguments": [2], "expected": %d}]}'
    good = skill({"scripts/area.py": AREA, "tests/area.json": case % 12}, "circles")
    bad = skill({"scripts/area.py": AREA, "tests/area.json": case % 13}, "squares")
    for one in (good, bad):
        export(one, tmp_path / "theirs")
    told = data("skills", "import", "--from", str(tmp_path / "theirs"))["skills"]
    circles, squares = (one["id"] for one in told)
    assert "was not tested" in refused("skills", "promote", circles)
    assert data("skills", "test", circles)["ok"]
    wrong = data("skills", "test", squares, code=1)
    assert wrong["failed"] == 1 and "area" in wrong["problems"][0]
    assert "13" not in str(wrong["problems"])  # what is expected is not told
    assert "nobody vouches" in refused("skills", "promote", circles)
    assert not data("skills", "promote", circles, "--reviewed-by", "me", "--dry-run")["done"]
    assert data("skills", "promote", circles, "--reviewed-by", "me")["state"] == "promoted"
    assert data("skills", "retire", circles)["skills"] == [circles]
    assert set(data("skills", "revoke", "--source", told[0]["source"])["skills"]) == {
        circles,
        squares,
    }
    assert run(["skills", "revoke", "--source", circles]) == 0
    assert "did you mean" in refused("skills", "revoke", "--source", told[0]["source"][:-1] + "x")
