"""`agentloop init`, and the workspace it writes, unedited, against an endpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_endpoint import FakeEndpoint, chat

from agentloop.cli import run
from agentloop.workflows.load import load
from agentloop.workspace import Workspace, carried

FILES = {"workflow.yaml", "tasks.jsonl", "grader.py", "agent.py"}
HABIT = "Always run code."


def agent(payload: dict[str, Any]) -> str | dict[str, Any]:
    """Runs code when it was told to; otherwise it guesses, and is right about divisors only. As
    the reflector it finds out that it should be told."""
    messages = payload["messages"]
    if "<instruction>" in messages[-1]["content"]:
        return f"<instruction>\n{HABIT}\n</instruction>"
    if messages[-1]["role"] == "tool":
        return f"Answer: {messages[-1]['content']}"
    task = messages[-1]["content"]
    if HABIT in messages[0]["content"] or "divisor" in task:
        return chat(None, tools=[("python", {"code": f"import math\nprint({expression(task)})"})])
    return "Answer: 1"


def expression(task: str) -> str:
    numbers = re.findall(r"\d+", task)
    if "times?" in task or "divisor" in task:
        return f"math.gcd({', '.join(numbers)})"
    if letter := re.search(r"letter (\w) occur in (\w+)", task):
        return f"{letter.group(2)!r}.count({letter.group(1)!r})"
    return (" + " if "sum" in task else " * ").join(numbers)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`agentloop init mine` in an empty directory; the home is the default one."""
    monkeypatch.chdir(tmp_path)
    assert run(["init", "mine"]) == 0
    return tmp_path / "mine"


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0, capsys.readouterr().err
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


# --- init ---------------------------------------------------------------------------------------


def test_init_writes_a_workspace_and_names_the_next_command(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["init", "other"]) == 0
    assert "agentloop run other" in capsys.readouterr().out
    assert {path.name for path in mine.iterdir()} == FILES
    assert (mine / "agent.py").read_bytes() == (carried() / "graphs/react.py").read_bytes()


def test_init_overwrites_nothing(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine / "agent.py").unlink()
    (mine / "grader.py").write_text("my own work")
    assert run(["init", "mine"]) == 2
    error = capsys.readouterr().err
    assert "grader.py" in error and "another folder" in error
    assert (mine / "grader.py").read_text() == "my own work"
    assert not (mine / "agent.py").exists()


def test_init_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["init", "mine", "--dry-run"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_workflow_is_short_commented_and_valid(mine: Path) -> None:
    lines = (mine / "workflow.yaml").read_text().splitlines()
    assert len(lines) <= 25
    text_begins = next(at for at, line in enumerate(lines) if line.startswith("instruction:"))
    assert all("#" in line for line in lines[: text_begins + 1])
    loaded = load(str(mine), Workspace.find(mine))
    assert loaded.spec.model == "auto" and set(loaded.spec.lanes) == {
        "instructions", "skills", "policy",
    }  # fmt: skip
    for part in (loaded.spec.tasks, loaded.spec.reward, loaded.spec.collect, loaded.spec.gate):
        loaded.build(part)
    for lane in loaded.spec.lanes.values():
        loaded.build(lane)


def test_the_untouched_agent_is_the_quickstart_s(mine: Path) -> None:
    """What `make demo` measures before learning is what `init` writes."""
    starter = yaml.safe_load((mine / "workflow.yaml").read_text())
    quickstart = yaml.safe_load((carried() / "workflows/quickstart/workflow.yaml").read_text())
    assert starter["instruction"] == quickstart["instruction"]
    assert starter["tools"] == quickstart["tools"]
    assert quickstart["graph"] == "react"  # which agent.py is a copy of


# --- only an endpoint and a key -----------------------------------------------------------------


def test_run_eval_and_cycle_work_unedited(
    mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeEndpoint(agent, key="sk-mine") as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")

        ran = as_json(capsys, "run", "mine", "--n", "6", "--seed", "1")
        assert ran.keys() >= {"run", "n", "succeeded", "failed", "by_reason", "cost"}
        assert ran["n"] == 6 == ran["succeeded"] + ran["failed"]
        assert ran["by_reason"] == {"wrong_answer": ran["failed"]}
        assert 0 < ran["succeeded"] < 6
        assert list(ran["cost"]) == COST
        assert ran["cost"]["tokens"] == 10 * fake.calls

        before = as_json(capsys, "eval", "mine", "--n", "12", "--seed", "0")
        assert before.keys() >= {"n", "successes", "rate", "bundle", "seconds"}
        assert before["n"] >= 10 and before["rate"] == before["successes"] / before["n"]
        assert before["rate"] < 0.5

        report = as_json(capsys, "cycle", "mine", "--seed", "0")
        check_report(report)
        assert report["state"] == "promoted" and report["heldout"]["challenger"] == 1.0
        assert report["lanes"]["instructions"]["state"] == "promoted"
        assert report["lanes"]["policy"]["state"] == "skipped"
        assert "API" in report["lanes"]["policy"]["reason"]

        after = as_json(capsys, "eval", "mine", "--bundle", "champion", "--n", "12")
        assert after["rate"] == 1.0 and after["bundle"] == report["bundle"]
        old = as_json(capsys, "eval", "mine", "--bundle", before["bundle"], "--n", "12")
        assert old["rate"] == before["rate"] and old["bundle"] == before["bundle"]
    verified = as_json(capsys, "store", "verify")
    assert verified.keys() == {"ok", "rows", "problems"}
    assert verified["ok"] and verified["rows"] > 100 and verified["problems"] == []


COST = ["usd", "tokens", "seconds", "unpriced", "unconfirmed"]


def check_report(report: dict[str, Any]) -> None:
    """The JSON contract of `cycle`, key by key."""
    assert list(report)[:6] == ["cycle", "state", "heldout", "lanes", "cost", "bundle"]
    assert list(report["heldout"]) == [
        "n", "champion", "challenger", "effect", "ci95", "p", "planned", "stopped", "alpha", "use",
        "reason", "note",
    ]  # fmt: skip
    assert list(report["lanes"]) == ["instructions", "skills", "policy"]
    for lane in report["lanes"].values():
        assert list(lane) == [
            "state", "candidate", "effect", "ci95", "p", "tokens_ratio", "seconds", "reason",
        ]  # fmt: skip
        assert lane["state"] in ("promoted", "kept", "failed", "skipped")
    assert list(report["cost"]) == COST
    low, high = report["heldout"]["ci95"]
    assert low <= report["heldout"]["effect"] <= high
    assert isinstance(report["cycle"], str) and isinstance(report["bundle"], str)


def test_without_an_endpoint_the_local_model_is_named(
    mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGENTLOOP_CACHE", str(mine / "no-model-here"))
    assert run(["run", "mine"]) == 2
    assert "agentloop setup local" in capsys.readouterr().err
