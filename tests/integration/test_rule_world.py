"""The rule world (24 rules, three of them needed per task) through the command line: what
`agentloop init` wrote, unedited, learns the rules from an endpoint that also writes the proposals.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint
from rule_world import RuleWorld, write_rows

from agentloop.cli import run

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_instruction_lane_learns_the_rules(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rules.jsonl", 240)
    assert run(["init", "mine"]) == 0
    world = RuleWorld(seed=seed)
    with FakeEndpoint(world, key="sk-mine") as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
        rules = ["mine", "--tasks", "rules.jsonl", "--seed", str(seed)]
        before = as_json(capsys, "eval", *rules)
        report = as_json(capsys, "cycle", *rules)
        spent, reflections = fake.calls - before["n"], world.reflections
        after = as_json(capsys, "eval", *rules, "--bundle", "champion")
        instruction = as_json(capsys, "inspect", "bundles", report["bundle"])
    with capsys.disabled():
        lane = report["lanes"]["instructions"]
        print(
            f"\nseed {seed}: held out {before['rate']:.0%} -> {after['rate']:.0%} "
            f"(n = {after['n']}), "
            f"{spent} calls, {reflections} of them reflections; {lane['reason']}; "
            f"{report['cost']['seconds']} s"
        )
    assert before["n"] == after["n"] == 64
    assert before["rate"] <= 0.30
    assert report["state"] == "promoted"
    assert report["lanes"]["instructions"]["state"] == "promoted"
    assert after["rate"] >= 0.80
    assert after["bundle"] == report["bundle"] != before["bundle"]
    assert spent <= 900  # what a cycle may cost: a few hundred short calls
    assert instruction


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)
