"""A unit and a crontab line that run this scheduler, whatever the paths are called."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_workflow

from agentloop.cli import run
from agentloop.schedule.install import cron, systemd

ODD = ["/a b/python", "-m", "it's", 'say "hi"', "50%", "$HOME", "back\\slash"]


def test_a_unit_names_its_words_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    made = systemd("my flow", ODD, directory=Path("/a b"), home=Path("/h 1%"))
    assert made.path == tmp_path / "config/systemd/user/agentloop-my-flow.service"
    [line] = [one for one in made.text.splitlines() if one.startswith("ExecStart=")]
    assert line == (
        'ExecStart="/a b/python" "-m" "it\'s" "say \\"hi\\"" "50%%" "$$HOME" "back\\\\slash"'
    )
    assert "EnvironmentFile=-/h 1%%/keys.env" in made.text and "WorkingDirectory=/a b" in made.text
    assert "enable --now agentloop-my-flow.service" in made.enable


def test_a_line_for_cron_is_what_a_shell_reads_back(tmp_path: Path) -> None:
    home = tmp_path / "h 1%"
    home.mkdir()
    (home / "keys.env").write_text("OPENAI_API_KEY=sk-1\n")
    show = [sys.executable, "-c", "import os,sys;print(os.environ['OPENAI_API_KEY'],sys.argv[1:])"]
    made = cron("w", [*show, *ODD], directory=tmp_path, home=home)
    assert made.text.count("\n") == 1 and made.text.startswith("*/5 * * * * cd ")
    command = made.text.removeprefix("*/5 * * * * ").strip().replace("\\%", "%")
    subprocess.run(["/bin/sh", "-c", command], check=True)
    said = (home / "schedule.log").read_text()
    assert said == f"sk-1 {[*ODD, '--due']}\n"
    assert shlex.quote(str(made.path)) in made.enable


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tiny_workflow.make(tmp_path)


@pytest.mark.parametrize("kind", ["--systemd", "--cron"])
def test_the_command(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    home = folder.parent / "my home"
    given = ["schedule", "install", str(folder), kind, "--home", str(home), "--json"]
    assert run([*given, "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert not Path(told["path"]).exists() and not home.exists()
    assert run(given) == 0
    assert Path(told["path"]).read_text() == told["text"] and str(folder) in told["text"]
    assert sys.executable in told["text"] and str(home) in told["text"]
    assert run(given[:-1]) == 0
    shown = capsys.readouterr().out
    assert "was written" in shown and told["enable"].split(" ")[0] in shown


def test_one_of_the_two(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schedule", "install", str(folder)]) == 2
    assert run(["schedule", "install", str(folder), "--systemd", "--cron"]) == 2
    assert capsys.readouterr().err.count("give one of --systemd and --cron") == 2
