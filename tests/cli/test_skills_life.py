"""`agentloop skills learn|merge|test|promote|retire|revoke`: a life by commands."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from malicious_skills import skill
from skill_world import KINDS, successes

from agentloop.cli import run
from agentloop.skills.library import export
from agentloop.store.archive import Archive

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


def test_learn_test_and_merge(home: Path, data: Data, refused: Refused) -> None:
    solved = [replace(one, run="r1") for kind in KINDS[:2] for one in successes(kind, 3)]
    solved += [replace(one, run="r2") for one in successes(KINDS[0], 3, seed=1)]
    with Archive(home) as archive:
        asyncio.run(archive.add_episodes(solved))
    assert not data("skills", "learn", "r1", "--dry-run")["done"]
    told = data("skills", "learn", "r1")["skills"]
    assert [one["evidence"] for one in told] == [3, 3]
    [again] = data("skills", "learn", "r2")["skills"]
    assert "has no solved rollouts" in refused("skills", "learn", "r3")
    alike = data("skills", "list", "--duplicates")
    assert len(alike) == 2 and again["id"] in {one["id"] for one in alike}
    merged = data("skills", "merge", *(one["id"] for one in alike))
    listed = {one["id"]: one for one in data("skills", "list", "--usage")}
    assert listed[merged["id"]]["state"] == "quarantined" and listed[merged["id"]]["given"] == 0
    assert data("skills", "test", merged["id"])["ok"]
    life = data("skills", "show", merged["id"])["life"]
    assert [one["state"] for one in life] == ["quarantined"] * 2 and life[1]["tests"]["failed"] == 0
    assert run(["skills", "show", merged["id"]]) == 0
    gone = data("skills", "revoke", "--source", "run/r2", "--dry-run")
    assert set(gone["skills"]) == {again["id"], merged["id"]}


def test_a_revision_takes_the_place_of_what_it_revises(
    home: Path, tmp_path: Path, data: Data, refused: Refused
) -> None:
    case = '{"function": "area", "cases": [{"arguments": [2], "expected": 12}]}'
    files = {"scripts/area.py": AREA, "tests/area.json": case}
    user = 'def twice(r: int) -> int:\n    """Two of them."""\n    return area(r) + area(r)\n'
    calls = '{"function": "twice", "cases": [{"arguments": [2], "expected": 24}]}'
    caller = {"scripts/twice.py": user, "tests/twice.json": calls}
    for one in (skill(files, "circles"), skill(caller, "pairs")):
        export(one, tmp_path / "theirs")
    told = data("skills", "import", "--from", str(tmp_path / "theirs"))["skills"]
    old, pairs = (one["id"] for one in told)
    revise = ("skills", "revise", "circles", "--from", str(tmp_path / "mine" / "circles"))
    better = {**files, "scripts/area.py": AREA.replace("3 * r * r", "r * r * 3")}
    export(skill(better, "circles"), tmp_path / "mine")
    assert "skill" in refused(*revise)  # no name of a promoted one yet
    assert "is not promoted" in refused("skills", "revise", old, *revise[3:])
    for name in (old, pairs):
        assert data("skills", "test", name)["ok"]
        assert data("skills", "promote", name, "--reviewed-by", "me")["replaces"] == []
    assert "already" in refused(*revise[:4], str(tmp_path / "theirs"))
    assert not data(*revise, "--dry-run")["done"]
    new = data(*revise)["id"]
    assert data("skills", "test", new)["ok"]  # beside the old one, which defines the same
    listed = {one["id"]: one["state"] for one in data("skills", "list")}
    assert (listed[old], listed[new]) == ("promoted", "quarantined")
    assert "nobody vouches" in refused("skills", "promote", new)
    assert data("skills", "promote", new, "--reviewed-by", "me")["replaces"] == [old]
    life = data("skills", "show", new)
    assert life["parents"] == [old] and life["life"][-1]["state"] == "promoted"
    gone = data("skills", "revoke", "--source", new)
    assert (gone["skills"], gone["callers"]) == ([new], [pairs])
    assert run(["skills", "revoke", "--source", old]) == 0
