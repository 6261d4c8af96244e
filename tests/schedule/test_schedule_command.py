"""`agentloop schedule` as a person uses it: cycles, the plan, the status, mistakes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_workflow

from agentloop.cli import run
from agentloop.store.archive import Archive
from agentloop.store.query import Query

SCHEDULED = """\
budget: {month: {tokens: 100000, rollouts: 5000}}
schedule: {cron: "0 3 * * *", timezone: Europe/Berlin, when: {trajectories: 20, drift: 0.01}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_workflow.make(tmp_path, yaml=tiny_workflow.YAML + SCHEDULED)


def data(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert run(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("error: ") == 1 and "Traceback" not in err
    return err


def test_cycles_status_and_what_is_left(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = str(folder.parent / "home")
    ran = data(capsys, "schedule", str(folder), "--every", "1s", "--cycles", "2", "--home", home)
    assert ran["cycles"] == 2
    first, second = ran["slots"][1], ran["slots"][0]
    assert first["state"] == "promoted" and second["state"] in ("kept", "promoted")
    assert first["seed"] != second["seed"] and first["cycle"] != second["cycle"]
    assert first["cause"] == "every 1 s"

    told = data(capsys, "schedule", "status", str(folder), "--home", home)
    cycles = [one for one in told["slots"] if "cycle" in one]
    assert [one["cycle"] for one in cycles] == [second["cycle"], first["cycle"]]
    assert told["rule"] == "cron `0 3 * * *` Europe/Berlin" and len(told["next"]) == 5
    assert all(name[11:] in ("01:00:00Z", "02:00:00Z") for name in told["next"])
    assert told["when"] == {"trajectories": 20, "drift": 0.01}
    with Archive(Path(home)) as archive:
        reports = [archive.step(key, "report") for key in archive.log.keys("cycle")]
        tokens = sum(one["cost"]["tokens"] for one in reports)  # type: ignore[index,call-overload]
        rollouts = len(list(archive.read(Query(kinds=("episode",)))))
    assert told["month_left"]["tokens"] == 100000 - tokens
    assert told["month_left"]["rollouts"] == 5000 - rollouts > 0

    assert run(["schedule", "status", str(folder), "--home", home]) == 0
    shown = capsys.readouterr().out
    assert "promoted" in shown and "next" in shown and f"{told['month_left']['tokens']:g}" in shown


def test_a_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = folder.parent / "home"
    told = data(capsys, "schedule", str(folder), "--dry-run", "--home", str(home))
    assert len(told["next"]) == 5 and told["month_left"] == told["month"]
    assert [one["stage"] for one in told["cycle"]["stages"]][-1] == "gate"
    assert told["cycle"]["calls_at_most"] > 0 and told["cycle"]["usd_at_most"] == 0
    assert not home.exists()
    assert run(["schedule", str(folder), "--dry-run", "--home", str(home), "--every", "6h"]) == 0
    shown = capsys.readouterr().out
    assert "every 21600 s" in shown and "plan of one cycle" in shown and "drift 0.01" in shown


def test_a_used_month_skips_the_slot_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = str(folder.parent / "home")
    little = ["--set", "budget.month.rollouts=30"]
    given = ["schedule", str(folder), "--every", "1d", "--due", "--home", home]
    ran = data(capsys, *given, *little)
    assert ran["cycles"] == 1 and ran["slots"][0]["state"] == "failed"
    assert "rollouts are used" in ran["slots"][0]["reason"]
    with Archive(Path(home)) as archive:
        assert len(archive.log.keys("episode")) <= 30
        before = archive.aliases()
    time.sleep(1.0)  # the first second's name is taken, whichever rule planned it
    assert run(["schedule", str(folder), "--every", "1s", "--due", "--home", home,
                "--set", "budget.month.rollouts=20"]) == 0  # fmt: skip
    err = capsys.readouterr().err
    assert "skipped: the month's budget of 20 rollouts is used" in err
    assert run(["cycle", str(folder), "--home", home, "--set", "budget.month.rollouts=20"]) == 3
    with Archive(Path(home)) as archive:
        assert archive.aliases() == before


def test_mistakes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flow = str(folder)
    for given, says in (
        (["--every", "soon"], "not an interval"), (["--cron", "61 * * * *"], "bad minute"),
        (["--cron", "0 3 * * *", "--timezone", "Mars"], "`Mars` is not a time zone"),
        (["--cron", "0 3 * * *", "--every", "1h"], "give one of them"),
        (["--missed", "never"], "skip, once, all"),
        (["--set", "schedule.evry=1h"], "did you mean `every`?"),
        (["--set", "schedule.when.drfit=0.1"], "did you mean `drift`?"),
        (["--set", "schedule.when.drift=2"], "schedule.when.drift"),
        (["--set", "schedule.every=1h"], "two clocks"),
        (["--set", "budget.month.usdd=1"], "did you mean `usd`?"),
        (["--set", "budget.month.usd=0"], "`budget.month.usd` must be above 0"),
    ):  # fmt: skip
        assert says in refused(capsys, "schedule", flow, *given, "--home", str(tmp_path / "h"))
    assert not (tmp_path / "h").exists()
    nothing = refused(capsys, "schedule", "status", flow, "--home", str(tmp_path))
    assert "nothing was logged" in nothing


def test_the_schedule_and_the_month_do_not_change_what_a_cycle_is(tmp_path: Path) -> None:
    from agentloop.workflows.load import load
    from agentloop.workspace import Workspace

    plain = tiny_workflow.make(tmp_path / "a")
    timed = tiny_workflow.make(tmp_path / "b", yaml=tiny_workflow.YAML + SCHEDULED)
    space = Workspace.find(tmp_path / "a")
    assert load(str(plain), space).digest() == load(str(timed), space).digest()
