"""Claims, measured: results written per run, resumed, stale when the code changed, rendered."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_workflow

from agentloop.checks import Results, digest, due, render_all, run_checks, run_stale
from agentloop.checks.__main__ import main
from agentloop.checks.render import BEGIN, END
from agentloop.cli import run
from agentloop.errors import UnknownName, UsageError
from agentloop.workflows.load import load
from agentloop.workspace import Workspace

CHECKS = """\
seed_paper: A paper | with a bar
ablations:
  short: {limits.turns: 2}
checks:
  - {id: high, tier: unit, metric: score, bar: 0.25, seeds: [1, 2, 3], source: here,
     use: "./measure.py:measure"}
  - {id: low, tier: unit, metric: cost, op: "<", bar: 2, seeds: [1], source: there,
     use: "./measure.py:measure"}
  - {id: ablated, tier: toy, metric: turns, op: "<=", bar: 2, source: x,
     use: "./measure.py:measure", ablation: short}
"""
MEASURE = '''\
"""Counts its runs in a file, so that a test sees which were made."""
from pathlib import Path
async def measure(run):
    with open(Path(__file__).parent / "runs.txt", "a") as file:
        file.write(f"{run.seed} {run.loaded.spec.limits.turns}\\n")
    if (Path(__file__).parent / "broken").exists() and run.seed == 2:
        raise RuntimeError("broken")
    return {"score": run.seed / 4, "cost": 1e-9 * run.seed, "turns": run.loaded.spec.limits.turns}
'''
README = f"# Tiny\n\nprose\n\n{BEGIN}\nold\n{END}\n\nmore prose\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workflow with three checks, in the current directory's workspace."""
    made = tiny_workflow.make(tmp_path, yaml=tiny_workflow.YAML + CHECKS)
    (made / "measure.py").write_text(MEASURE)
    (made / "README.md").write_text(README)
    (tmp_path / "workflows" / "README.md").write_text(f"# All\n{BEGIN}\n{END}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENTLOOP_HOME", str(tmp_path / "home"))
    return made


def runs(folder: Path) -> list[str]:
    """The runs made since the last look."""
    file = folder / "runs.txt"
    made = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return made


def table(path: Path) -> list[list[str]]:
    lines = path.read_text().partition(BEGIN)[2].partition(END)[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_runs_are_shared_by_checks_and_written_with_what_made_them(folder: Path) -> None:
    space = Workspace.find()
    high, low = run_checks("tiny", space, tier="unit")
    assert runs(folder) == ["1 4", "2 4", "3 4"]
    assert high.values == {"1": 0.25, "2": 0.5, "3": 0.75} and high.mean == 0.5 and high.ok
    assert high.summary() == "0.5 (0.25 to 0.75, 3 seeds)" and high.met() == "yes"
    assert low.values == {"1": 1e-9} and low.ok  # small numbers are not rounded away
    written = json.loads((folder / "results.json").read_text())["runs"]
    assert len(written) == 3
    for one in written.values():
        assert set(one) == {"metrics", "hash", "seconds", "commit", "at"}
        assert one["hash"] == digest(load("tiny", space))


def test_finished_runs_are_not_repeated_and_an_ablation_is_applied(folder: Path) -> None:
    space = Workspace.find()
    run_checks("tiny", space, tier="unit")
    runs(folder)
    *_, ablated = run_checks("tiny", space)
    assert runs(folder) == ["0 2"] and ablated.values == {"0": 2.0} and ablated.ok
    run_checks("tiny", space)
    assert runs(folder) == []


def test_a_measure_that_breaks_keeps_the_finished_runs(folder: Path) -> None:
    (folder / "broken").touch()
    with pytest.raises(RuntimeError):
        run_checks("tiny", Workspace.find(), tier="unit")
    assert len(Results.read(folder).runs) == 1
    (folder / "broken").unlink()
    runs(folder)
    run_checks("tiny", Workspace.find(), tier="unit")
    assert runs(folder) == ["2 4", "3 4"]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that the workflow names."""
    (tmp_path / "named_module.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "named_module.py"


CHANGES: dict[str, tuple[bool, Callable[[Path, Path], Any]]] = {
    "the workflow": (True, lambda folder, _: _edit(folder / "workflow.yaml", "n: 24", "n: 23")),
    "a part": (True, lambda folder, _: _edit(folder / "parts.py", "import re", "import re as re")),
    "the tasks": (True, lambda folder, _: _edit(folder / "tasks.jsonl", "products", "others")),
    "a named module": (True, lambda _, module: module.write_text("X = 2\n")),
    "the title": (False, lambda folder, _: _edit(folder / "workflow.yaml", "Tiny", "Small")),
    "a bar": (False, lambda folder, _: _edit(folder / "workflow.yaml", "bar: 0.25", "bar: 0.5")),
    "the README": (False, lambda folder, _: (folder / "README.md").write_text("new")),
}


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("what", CHANGES)
def test_results_are_stale_when_what_made_them_changed(
    folder: Path, module: Path, what: str
) -> None:
    _edit(folder / "workflow.yaml", "title: Tiny", "title: Tiny\nmodules: [named_module]")
    space = Workspace.find()
    run_checks("tiny", space, tier="unit")
    runs(folder)
    stale, change = CHANGES[what]
    change(folder, module)
    loaded = load("tiny", space)
    result = Results.read(folder).result(loaded.spec.checks[0], digest(loaded))
    assert result.stale is stale and result.values
    assert len(due("tiny", space, tier="unit", only_stale=True)) == (3 if stale else 0)
    render_all(Path.cwd())
    told = (folder / "README.md").read_text() + (folder.parent / "README.md").read_text()
    assert ("stale" in told) is stale
    assert len(run_stale(Path.cwd(), tier="unit", minutes=1)) == (1 if stale else 0)
    assert len(runs(folder)) == (3 if stale else 0)


def test_tables_say_what_was_reached_and_leave_the_prose(folder: Path) -> None:
    run_checks("tiny", Workspace.find())
    text = (folder / "README.md").read_text()
    assert text.startswith("# Tiny\n\nprose\n") and text.endswith("\n\nmore prose\n")
    lines = table(folder / "README.md")
    assert lines[0] == ["check", "tier", "bar", "reached", "met", "seconds", "source"]
    assert lines[2][:5] == ["high", "unit", "score >= 0.25", "0.5 (0.25 to 0.75, 3 seeds)", "yes"]
    [_, _, index] = table(folder.parent / "README.md")
    assert index[0] == "[tiny](tiny/README.md)" and index[1] == "A paper \\| with a bar"
    assert index[5] == "`agentloop cycle tiny`"
    assert index[6] == "score 0.5 (0.25 to 0.75, 3 seeds); 3 of 3 checks met"
    again = text
    render_all(Path.cwd())
    assert (folder / "README.md").read_text() == again


def test_what_was_not_run_says_so(folder: Path) -> None:
    render_all(Path.cwd())
    assert [line[3:5] for line in table(folder / "README.md")[2:]] == [["not run", "not run"]] * 3


def test_no_time_left_measures_nothing(folder: Path) -> None:
    run_checks("tiny", Workspace.find(), tier="unit")
    _edit(folder / "parts.py", "import re", "import re as re")
    runs(folder)
    assert run_stale(Path.cwd(), tier="unit", minutes=0) == [] and runs(folder) == []


def test_the_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "tiny", "--tier", "unit"]) == 0
    assert "0.25 to 0.75" in capsys.readouterr().out
    _edit(folder / "workflow.yaml", "bar: 0.25", "bar: 0.5")
    assert run(["check", "tiny", "--tier", "unit"]) == 1  # a bar that is not met
    assert main(["--tier", "unit", "--stale"]) == 0
    assert "none" in capsys.readouterr().out
    _edit(folder / "measure.py", "/ 4", "/ 3")
    assert main(["--tier", "unit", "--stale"]) == 0
    assert "measured again: tiny" in capsys.readouterr().out
    shutil.copy(folder / "README.md", folder / "before.md")
    assert main(["--render"]) == 0
    assert (folder / "README.md").read_text() == (folder / "before.md").read_text()


def test_wrong_claims_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = Workspace.find()
    with pytest.raises(UsageError, match="no lm checks"):
        run_checks("tiny", space, tier="lm")
    _edit(folder / "workflow.yaml", "metric: score", "metric: skore")
    with pytest.raises(UnknownName, match="did you mean `score`"):
        run_checks("tiny", space, tier="unit")
    _edit(folder / "measure.py", "run.seed / 4", "float('nan')")
    _edit(folder / "workflow.yaml", "metric: skore", "metric: score")
    with pytest.raises(UsageError, match="no finite number for score"):
        run_checks("tiny", space, tier="unit")
    (folder / "results.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        run_checks("tiny", space)
    (folder / "results.json").unlink()
    _edit(folder / "workflow.yaml", "title: Tiny", "title: Tiny\nmodules: [no.such]")
    assert main(["--render"]) == 2
    assert "no module `no.such`" in capsys.readouterr().err


def test_the_default_measure_is_one_cycle_continued_where_it_stopped(folder: Path) -> None:
    _edit(folder / "workflow.yaml", "metric: score", "metric: heldout.effect")
    text = (folder / "workflow.yaml").read_text()
    text = text.replace(',\n     use: "./measure.py:measure"', "", 1)
    (folder / "workflow.yaml").write_text(text.replace("seeds: [1, 2, 3]", "seeds: [1]"))
    high, _ = run_checks("tiny", Workspace.find(), tier="unit")
    assert 0.4 < high.values["1"] < 0.6  # over the pairs that the gate stopped after
    seconds = Results.read(folder).runs["cycle||1"]["metrics"]["seconds"]
    (folder / "results.json").unlink()
    # the finished cycle is found in its home
    assert run_checks("tiny", Workspace.find(), tier="unit")[0].values == high.values
    assert Results.read(folder).runs["cycle||1"]["metrics"]["seconds"] == seconds
