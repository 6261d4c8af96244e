"""A small workspace with the instructions and skills lanes, for tests of resuming.

Eight rules, two per task, four of them known from the start, so that some tasks are solved and
skills come of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from rule_world import RuleWorld, write_rows

WORKFLOW = """\
title: A small cycle
model: endpoint
tasks: {use: "agentloop.tasks.files:Jsonl", path: ./rules.jsonl}
graph: react
tools: [python]
instruction: "Keep these rules in mind: RULE-00 RULE-01 RULE-02 RULE-03"
reward: {use: "agentloop.rewards.function:Function", grade: ./grader.py:grade}
collect: {use: "agentloop.lanes.collect:Explore", rounds: 2, tasks: 10, samples: 1, practice: 8}
lanes:
  instructions:
    use: agentloop.lanes.instructions:EvolveInstruction
    rollouts: 60
    dev: 10
    minibatch: 4
    proposals: 2
    patience: 3
    lessons: 2
  skills: agentloop.lanes.skills:InduceSkills
heldout: {n: 16, lanes: 10}
concurrency: 8
"""


def write(folder: Path) -> Path:
    """The workspace in `folder`."""
    from agentloop.cli import start

    folder.mkdir(parents=True)
    (folder / "workflow.yaml").write_text(WORKFLOW)
    shutil.copy(Path(start.__file__).parent / "starter" / "grader.py", folder)
    write_rows(folder / "rules.jsonl", 100, rules=8, needs=2)
    return folder


def world() -> RuleWorld:
    """Two calls per rollout: code, then the answer."""
    return RuleWorld(tool="python", arguments={"code": "print(6 * 7)"})
