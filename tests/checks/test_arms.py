"""What a measure may do beyond one cycle: several in a row, and another arm beside."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_workflow

from agentloop.checks import Results, run_checks
from agentloop.workspace import Workspace

CHECKS = """\
checks:
  - {id: arms, tier: lm, metric: cycles, bar: 2, source: here, use: "./measure.py:measure"}
"""
MEASURE = '''\
"""Two cycles, and one without the policy lane."""
from agentloop.store.archive import Archive
from agentloop.store.query import Query


def cycles(home):
    with Archive(home) as archive:
        return len(list(archive.read(Query(kinds=("cycle",)))))


async def measure(run):
    reports = await run.reports(2)
    again = await run.reports(2)
    other = run.beside("other", {"lanes.policy": None})
    [alone] = await other.reports(1)
    assert other.home.parent == run.home and other.seed == run.seed
    return {
        "cycles": cycles(run.home), "different": len({one.cycle for one in reports}),
        "repeated": float(again == reports), "other": cycles(other.home),
        "policy": float("policy" in other.loaded.spec.lanes),
    }
'''


def test_cycles_in_a_row_and_an_arm_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_workflow.make(tmp_path, yaml=tiny_workflow.YAML + CHECKS)
    (folder / "measure.py").write_text(MEASURE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENTLOOP_HOME", str(tmp_path / "home"))
    [check] = run_checks("tiny", Workspace.find())
    assert check.ok
    [run] = Results.read(folder).runs.values()
    assert run["metrics"] == {
        "cycles": 2.0, "different": 2.0, "repeated": 1.0, "other": 1.0, "policy": 0.0,
    }  # fmt: skip
