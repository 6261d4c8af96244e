"""With --json stdout is one JSON document; a dry run leaves no trace; every command has help."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_workflow
import typer

from agentloop.cli import run
from agentloop.cli.app import app
from agentloop.store.archive import Archive

Data = Callable[..., Any]
COST = {"usd", "tokens", "seconds", "unpriced", "unconfirmed"}
COUNTS = {"drift", "partial_groups"}
HELD_OUT = {
    "n", "champion", "challenger", "effect", "ci95", "p", "planned", "stopped", "alpha", "use",
    "reason", "note",
}  # fmt: skip
LANE = {"state", "candidate", "effect", "ci95", "p", "tokens_ratio", "seconds", "reason"}
CHECK = "checks: [{id: gain, tier: unit, metric: heldout.effect, bar: 0.3, source: here}]\n"


def test_run_and_eval(tiny: str, home: Path, data: Data) -> None:
    told = data("run", tiny, "--n", "4", "--seed", "3")
    assert set(told) == {"run", "n", "succeeded", "failed", "by_reason", "cost", *COUNTS}
    assert told["n"] == 4 == told["succeeded"] + told["failed"] and set(told["cost"]) == COST
    assert told["by_reason"] == {"wrong_answer": told["failed"]}
    rated = data("eval", tiny, "--bundle", "champion", "--n", "40")
    assert set(rated) == {"n", "successes", "rate", "bundle", "seconds", "cost", *COUNTS}
    assert set(rated["cost"]) == COST and rated["cost"]["tokens"] > 0
    assert rated["rate"] == rated["successes"] / rated["n"] == 0.5
    assert data("eval", tiny, "--bundle", rated["bundle"], "--n", "40")["rate"] == 0.5


def test_cycle_keeps_the_contract(cycled: tuple[str, str], data: Data) -> None:
    workflow, home = cycled
    told = data("cycle", workflow, "--home", home)
    assert set(told) == {"cycle", "state", "heldout", "lanes", "cost", "bundle", *COUNTS}
    assert set(told["drift"]) == {"clean", "realigned", "forked"} and told["partial_groups"] == 0
    assert set(told["heldout"]) == HELD_OUT
    assert set(told["lanes"]) == {"instructions", "skills", "policy"}
    assert all(set(lane) == LANE for lane in told["lanes"].values())
    assert set(told["cost"]) == COST and told["state"] == "promoted"
    assert data("cycle", workflow, "--home", home, "--resume") == told
    assert data("inspect", "bundles", told["bundle"], "--home", home)["id"] == told["bundle"]


def test_reading_commands(cycled: tuple[str, str], data: Data) -> None:
    workflow, home = cycled
    verified = data("store", "verify", "--home", home)
    assert set(verified) == {"ok", "rows", "problems"} and verified["ok"]
    for noun in ("skills", "instructions", "policies", "bundles", "trajectories"):
        listed = data("inspect", noun, "--home", home)
        assert listed
        one = data("inspect", noun, listed[0]["id"], "--home", home)
        assert one["id"] == listed[0]["id"]
    verdicts = data("inspect", "decisions", "--home", home)
    assert {v["subject"] for v in verdicts} >= {"instructions", "skills", "policy", "joint"}
    assert data("inspect", "decisions", verdicts[0]["cycle"], "--home", home) == verdicts
    assert {row["what"] for row in data("doctor", "--home", home)} >= {"python", "local model"}
    plan = data("cycle", workflow, "--dry-run", "--home", home)
    assert {stage["stage"]: stage["rollouts_at_most"] for stage in plan["stages"]} == {
        "collect": 36, "instructions": 24, "skills": 0, "policy": 0, "gate": 96 + 48,
    }  # fmt: skip


def test_search_and_rollback(cycled: tuple[str, str], tmp_path: Path, data: Data) -> None:
    import shutil

    workflow, home = cycled[0], str(tmp_path / "home")
    shutil.copytree(cycled[1], home)
    hits = data("search", "product of two numbers", "-k", "3", "--home", home)
    assert len(hits) == 3 and set(hits[0]) == {"id", "distance", "state", "text"}
    back = data("rollback", workflow, "--home", home)
    assert set(back) == {"workflow", "from", "to", "done"} and back["done"]


def test_check(tmp_path: Path, home: Path, data: Data) -> None:
    folder = tiny_workflow.make(tmp_path, yaml=tiny_workflow.YAML + CHECK)
    assert data("check", str(folder), "--dry-run") == [{"check": "gain", "seed": 0}]
    [told] = data("check", str(folder))
    assert told["ok"] and told["values"] == {"0": pytest.approx(0.5, abs=0.1)} and not told["stale"]
    assert data("check", str(folder), "--dry-run") == []
    assert data("check", str(folder), "--tier", "unit", "--stale") == [told]


def test_a_dry_run_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Data
) -> None:
    folder = tiny_workflow.make(tmp_path, yaml=tiny_workflow.YAML + CHECK)
    home, cache = tmp_path / "home", tmp_path / "cache"
    monkeypatch.setenv("AGENTLOOP_CACHE", str(cache))
    before = sorted(tmp_path.rglob("*"))
    for command in ("run", "eval", "cycle", "check"):
        data(command, str(folder), "--dry-run", "--home", str(home))
    for arguments in (
        ["schedule", str(folder), "--dry-run", "--home", str(home)],
        ["init", str(tmp_path / "mine"), "--dry-run"],
        ["setup", "local", "--dry-run"],
    ):
        assert run(arguments) == 0
    assert [p for p in sorted(tmp_path.rglob("*")) if "__pycache__" not in p.parts] == before


def test_a_dry_run_in_a_used_home(cycled: tuple[str, str], tmp_path: Path) -> None:
    workflow, home = cycled
    (tmp_path / "text").write_text("Be brief.")
    with Archive(Path(home)) as archive:
        rows, serving = archive.verify()["rows"], archive.aliases()
        [skill, *_] = archive.log.keys("skill")
    for arguments in (
        ["rollback", workflow], ["store", "reindex"], ["cycle", workflow, "--again"],
        ["instructions", "edit", workflow, str(tmp_path / "text")],
        ["skills", "export", skill, str(tmp_path / "out")],
    ):  # fmt: skip
        assert run([*arguments, "--dry-run", "--home", home]) == 0
    with Archive(Path(home)) as archive:
        assert archive.verify()["rows"] == rows and archive.aliases() == serving
    assert not (tmp_path / "out").exists()


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in getattr(group, "commands", {}).items():
        yield (*path, name)
        yield from commands(command, (*path, name))


ALL = list(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*path, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Usage: agentloop" in out
    listed = out.partition("Commands:")[2].splitlines()
    assert not [line for line in listed if line.endswith("...")]  # cut off by the parser


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    run([])
    text = "".join(capsys.readouterr())
    assert "Usage: agentloop" in text and all(path[0] in text for path in ALL)


def test_help_takes_at_most_half_a_second_of_processor() -> None:
    def seconds() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-m", "agentloop", "--help"], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        after = os.times()
        used = after.children_user + after.children_system
        return used - before.children_user - before.children_system

    assert min(seconds() for _ in range(5)) <= 0.5


def test_a_reader_that_goes_away_is_no_crash(cycled: tuple[str, str]) -> None:
    command = [sys.executable, "-m", "agentloop", "inspect", "bundles", "--home", cycled[1]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        error = process.stderr.read().decode()
    assert "Traceback" not in error and "BrokenPipe" not in error
