"""Code tasks through a whole run of a workflow: what the model saw, what the log says of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentloop.cli import run
from agentloop.lanes import flags
from agentloop.records import Episode
from agentloop.rewards.split import CANARY
from agentloop.store.archive import Archive

TASKS = (
    "{use: agentloop.tasks.code.tasks:CodeTasks, families: [code_digits, code_runs], canaries: 0.3}"
)
YAML = """\
title: Code
model: scripted
tasks: TASKS
instruction: Write the function.
limits: {turns: 1, tokens: 400, seconds: 60}
reward: {use: agentloop.rewards.split:CodeTests, sandbox: monty}
collect: {use: agentloop.lanes.sample:Sample, tasks: 16, samples: 1}
lanes: {}
heldout: {n: 8, lanes: 4}
scripted:
  tasks: TASKS
  replies: ./parts.py:replies
"""
PARTS = '''\
"""Solves what it can read: the digits of a number."""

import re


def replies(request):
    prompt = request.messages[-1].content
    if "shorten" in prompt:
        return "I do not know.\\n```python\\ndef shorten(text):\\n    return text\\n```"
    base, power = re.search(r"in base (\\d+)", prompt)[1], re.search(r"power of (\\d+)", prompt)[1]
    each = (re.search(r"plus (\\d+) for each", prompt) or ["", "0"])[1]
    return f"""Digit by digit:
```python
def digit_sum(n):
    total = 0
    while n:
        n, digit = divmod(n, {base})
        total += digit ** {power} + {each}
    print(total)
    return total
```"""
'''


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> list[Episode]:
    """Of a cycle that collects and of an evaluation."""
    root = tmp_path_factory.mktemp("code")
    folder, home = root / "workflows" / "code", root / "home"
    folder.mkdir(parents=True)
    (folder / "workflow.yaml").write_text(YAML.replace("TASKS", TASKS))
    (folder / "parts.py").write_text(PARTS)
    for command in ("run", "eval"):
        assert run([command, str(folder), "--n", "24", "--home", str(home), "--json"]) == 0
    with Archive(home) as archive:
        return list(archive.episodes())


def solvable(one: Episode) -> bool:
    return one.task.family == "code_digits" and "canary" not in one.task.data


def test_hidden_tests_decide(episodes: list[Episode]) -> None:
    assert len(episodes) == 48 and all(one.score is not None for one in episodes)
    assert [one.success for one in episodes] == [solvable(one) for one in episodes]
    assert 12 <= sum(one.success for one in episodes) < 24


def test_nothing_hidden_was_shown(episodes: list[Episode]) -> None:
    for one in episodes:
        said = " ".join(node.message.content for each in one.trajectories for node in each.nodes)
        tests: Any = one.task.data["tests"]
        calls = [f"({json.dumps(case['arguments'])[1:-1]})" for case in tests["cases"]]
        assert one.task.prompt in said and "canary" not in said
        assert not any(call in said for call in calls if len(call) > 12)
        feedback = one.score.feedback if one.score is not None else ""
        assert one.success or feedback.startswith("case ")
        assert not any(call in feedback for call in calls)


def test_canaries_are_practised_on_and_never_passed(episodes: list[Episode]) -> None:
    canaries = [one for one in episodes if "canary" in one.task.data]
    assert canaries and flags.rates(episodes)[CANARY] == (0, len(canaries))
    assert flags.alarm(episodes) == "" and flags.unflagged(episodes) == episodes
