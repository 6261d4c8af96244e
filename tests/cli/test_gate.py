"""What a person sees of the gate: probes, a hold-out that wears out, stopping early."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_workflow

from agentloop.cli import run

Data = Callable[..., Any]
PROBES = "probes: {use: agentloop.tasks.files:Jsonl, path: ./probes.jsonl}\n"


REFUSING = """\
from agentloop.errors import ModelError


def refuse(request):
    if request.policy:
        raise ModelError("400: this cannot be sent")
"""


def probed(root: Path, *rows: dict[str, str]) -> str:
    folder = tiny_workflow.make(root, yaml=tiny_workflow.YAML + PROBES)
    (folder / "probes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def product(a: int, b: int, **more: str) -> dict[str, str]:
    return {"id": f"p{a}", "prompt": f"Multiply {a} by {b}.", "expected": str(a * b), **more}


def test_a_promotion_says_what_it_was_decided_on(tmp_path: Path, home: Path, data: Data) -> None:
    workflow = probed(tmp_path, product(4, 5), product(6, 7), product(3, 3))
    plan = data("cycle", workflow, "--dry-run")
    assert plan["stages"][-1] == {"stage": "gate", "rollouts_at_most": 96 + 2 * (24 + 3)}
    told = data("cycle", workflow)["heldout"]
    assert (told["planned"], told["stopped"], told["use"]) == (24, "better", 1)
    assert told["n"] <= 24
    assert told["alpha"] == pytest.approx(0.0304, abs=1e-4) and told["note"] == ""
    assert told["reason"].startswith("better: ") and told["p"] < told["alpha"]
    verdicts = data("inspect", "decisions")
    final = [verdict for verdict in verdicts if verdict["final"]]
    assert [verdict["subject"] for verdict in final] == ["joint"]
    assert final[0]["guards"]["probes"] == {"impossible": 0, "fooled": [], "due": 2, "lost": []}
    assert final[0]["evidence"]["better"] > 1 / told["alpha"] and verdicts[-1] == final[0]
    lanes = [verdict for verdict in verdicts if verdict["subject"] in ("skills", "policy")]
    seen = {task for verdict in verdicts[:-1] for task, _, _ in verdict["outcomes"]}
    assert lanes and not seen & {task for task, _, _ in final[0]["outcomes"]}


def test_an_impossible_probe_that_is_passed_keeps_the_champion(
    tmp_path: Path, home: Path, data: Data
) -> None:
    workflow = probed(tmp_path, product(4, 5), product(7, 7, expect="fail"))
    told = data("cycle", workflow)
    assert told["state"] == "kept" and told["heldout"]["stopped"] == "refused"
    assert "passed 1 of 1 impossible probes, such as `p7`" in told["heldout"]["reason"]


def test_a_lane_that_breaks_its_own_calls_costs_itself(
    tmp_path: Path, home: Path, data: Data
) -> None:
    """The endpoint refuses whatever the trained policy sends, and answers all others."""
    parts = tiny_workflow.PARTS.replace("import re\n", "import re\n\n" + REFUSING)
    parts = parts.replace("def replies(request):\n", "def replies(request):\n    refuse(request)\n")
    told = data("cycle", str(tiny_workflow.make(tmp_path, parts=parts)))
    policy = next(one for one in data("inspect", "decisions") if one["subject"] == "policy")
    assert policy["stopped"] == "refused" and policy["challenger_rate"] == 0
    assert policy["reason"].startswith("refused: 12 of its 12 rollouts came to no score; the first")
    assert "400: this cannot be sent" in policy["reason"]
    assert told["state"] == "promoted"


def test_probes_that_cannot_be_read(tmp_path: Path, home: Path, refused: Data) -> None:
    workflow = probed(tmp_path)
    assert "probes.jsonl` has no heldout task" in refused("cycle", workflow)
    (Path(workflow) / "probes.jsonl").unlink()
    assert "probes.jsonl` does not exist" in refused("cycle", workflow)


def test_a_hold_out_that_wears_out_is_said(
    tiny: str, home: Path, data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    told = [data("cycle", tiny, *again)["heldout"] for again in ((), ("--again",))]
    assert [one["use"] for one in told] == [1, 2] and told[1]["alpha"] < told[0]["alpha"] / 3
    capsys.readouterr()
    assert run(["cycle", tiny, "--again"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "note: 3 cycles were decided on some of these held-out tasks" in shown
    assert "add held-out tasks" in shown
