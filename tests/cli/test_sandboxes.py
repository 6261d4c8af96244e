"""`agentloop sandboxes`: what it says of each, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentloop.cli import run as command
from agentloop.cli import sandboxes as commands

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    for name, text in {
        "open": "backend: process\nunsafe: true",
        "small": "backend: monty\nseconds: 0.3",
        "wrong": "backend: monty\nsecond: 1",
    }.items():
        file = tmp_path / "sandboxes" / name / "profile.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    (tmp_path / "workflows").mkdir()
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = command(["sandboxes", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_list(capsys: pytest.CaptureFixture[str], workspace: Path) -> None:
    code, out, _ = run(capsys, "list", "--json", "--workspace", str(workspace))
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and {"bwrap", "landlock", "monty", "process", "open", "small"} <= set(rows)
    assert rows["small"]["profile"]["seconds"] == 0.3 and rows["small"]["usable"]
    assert not rows["wrong"]["usable"] and "did you mean `seconds`" in rows["wrong"]["missing"]
    code, out, _ = run(capsys, "list", "--workspace", str(workspace))
    assert code == 0 and "has no walls" in out and "small" in out


def test_check(
    capsys: pytest.CaptureFixture[str], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ("--workspace", str(workspace))
    code, out, _ = run(capsys, "check", "small", *here)
    assert (code, out) == (0, "small keeps its promises\n")
    code, out, _ = run(capsys, "check", "wrong", "--json", *here)
    told: dict[str, Any] = json.loads(out)["wrong"]
    assert code == 1 and not told["holds"] and "did you mean" in told["problems"][0]
    code, _, err = run(capsys, "check", "smal", *here)
    assert code == 2 and "did you mean `small`" in err and "Traceback" not in err
    code, _, err = run(capsys, "check", "open", *here)
    assert code == 2 and "has no walls" in err
    monkeypatch.setattr(commands, "_checked", lambda profile: (3, ["read: \x1b[2Jby path"]))
    code, out, _ = run(capsys, "check", *here)
    assert code == 1 and "small does not hold\n  read: by path\n" in out
    assert not any(line.startswith("open ") for line in out.splitlines())


@pytest.mark.integration
def test_check_attacks_for_real(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", "bwrap", "--json", "--workspace", str(ROOT))
    told = json.loads(out)["bwrap"]
    assert code == 0 and told["holds"] and told["attempts"] > 110 and not told["problems"]
