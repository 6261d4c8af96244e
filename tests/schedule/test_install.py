"""A unit and a crontab line that run this scheduler, whatever the paths are called."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_workflow

from agentloop.cli import run
from agentloop.errors import UsageError
from agentloop.schedule.install import Installation, cron, systemd

ODD = ["/a b/python", "-m", "it's", 'say "hi"', "50%", "$HOME", "back\\slash"]


def test_a_unit_names_its_words_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    made = systemd("my flow", ODD, directory=Path("/a b"), home=Path("/h 1%"))
    assert made.path.parent == tmp_path / "config/systemd/user"
    assert re.fullmatch(r"agentloop-my-flow-[0-9a-f]{8}\.service", made.path.name)
    [line] = [one for one in made.text.splitlines() if one.startswith("ExecStart=")]
    assert line == (
        'ExecStart="/a b/python" "-m" "it\'s" "say \\"hi\\"" "50%%" "$$HOME" "back\\\\slash"'
    )
    assert "EnvironmentFile=-/h 1%%/keys.env" in made.text and "WorkingDirectory=/a b" in made.text
    assert f"enable --now {made.path.name}" in made.enable


def test_a_unit_is_of_one_workflow_and_home() -> None:
    """Two homes of one workflow have a unit each; installing again replaces its own."""
    here = Path("/d")
    paths = [
        kind(name, ["x"], directory=here, home=Path(home)).path.name
        for kind in (systemd, cron)
        for name, home in (("w", "/h1"), ("w", "/h2"), ("a b", "/h1"), ("a-b", "/h1"))
    ]
    assert len(set(paths)) == 8
    again = systemd("w", ["y"], directory=here, home=Path("/h1"))
    assert again.path.name == paths[0]


@pytest.mark.parametrize("kind", [systemd, cron])
@pytest.mark.parametrize("odd", ["a\nb", "a\rb", "a\0b"])
def test_what_is_no_line_is_refused(kind: Callable[..., Installation], odd: str) -> None:
    for command, directory, home in ((odd, "/d", "/h"), ("x", odd, "/h"), ("x", "/d", odd)):
        with pytest.raises(UsageError, match="control character"):
            kind("w", [command], directory=Path(directory), home=Path(home))


def test_enabled_twice_it_stands_in_the_crontab_once(tmp_path: Path) -> None:
    tool, table = tmp_path / "bin" / "crontab", tmp_path / "table"
    tool.parent.mkdir()
    tool.write_text(
        f"#!/bin/sh\n[ $1 = -l ] && exec cat {table}\ncat > {table}.n && mv {table}.n {table}\n"
    )
    tool.chmod(0o755)
    path = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}"}
    homes = [tmp_path / name for name in ("h 1%", "h2")]

    def enable(home: Path, word: str) -> None:
        made = cron("w", ["x", word], directory=tmp_path, home=home)
        made.write()
        subprocess.run(["/bin/sh", "-c", made.enable], check=True, env=path)

    enable(homes[0], "first")  # where there is no crontab yet
    table.write_text("0 0 * * * own\n" + table.read_text())
    enable(homes[1], "other")
    enable(homes[0], "second")
    lines = table.read_text().splitlines()
    assert len(lines) == 3 and lines[0] == "0 0 * * * own"
    assert [word for word in ("first", "other", "second") if word in " ".join(lines)] == [
        "other", "second",
    ]  # fmt: skip


def test_a_line_for_cron_is_what_a_shell_reads_back(tmp_path: Path) -> None:
    home = tmp_path / "h 1%"
    home.mkdir()
    (home / "keys.env").write_text(
        "# for cron and systemd alike\nOPENAI_API_KEY='sk $1 \"2\" \\'\n"
    )
    show = [sys.executable, "-c", "import os,sys;print(os.environ['OPENAI_API_KEY'],sys.argv[1:])"]
    made = cron("w", [*show, *ODD], directory=tmp_path, home=home)
    assert made.text.count("\n") == 1 and made.text.startswith("*/5 * * * * cd ")
    command = made.text.removeprefix("*/5 * * * * ").strip().replace("\\%", "%")
    subprocess.run(["/bin/sh", "-c", command], check=True)
    said = (home / "schedule.log").read_text()
    assert said == f"""sk $1 "2" \\ {[*ODD, "--due"]}\n"""
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
