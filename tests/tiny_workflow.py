"""A workspace with one small scripted workflow, for tests of the commands: products to practise on,
others held out, and a model that multiplies once it is shown or told how."""

import json
from pathlib import Path

YAML = """\
title: Tiny
model: scripted
tasks: {use: agentloop.tasks.files:Jsonl, path: ./tasks.jsonl}
instruction: Solve the task.
tools: [python]
limits: {turns: 4, tokens: 400, seconds: 60}
reward: agentloop.rewards.verify:Exact
collect: {use: agentloop.lanes.collect:Explore, rounds: 2, tasks: 12, samples: 2, practice: 12}
lanes:
  instructions: {use: agentloop.lanes.instructions:EvolveInstruction, rollouts: 24, dev: 6,
    minibatch: 3, proposals: 1, patience: 1, operators: [reflect]}
  skills: agentloop.lanes.skills:InduceSkills
  policy: agentloop.lanes.policy:RejectionSampling
heldout: {n: 24, lanes: 12}
scripted:
  tasks: {use: agentloop.tasks.files:Jsonl, path: ./tasks.jsonl}
  replies: ./parts.py:replies
"""

PARTS = '''\
"""A model that uses its tool once it was shown how, told how, or trained; or by chance."""

import re


def replies(request):
    system = next((m.content for m in request.messages if m.role == "system"), "")
    last = request.messages[-1].content
    if "<instruction>" in last:
        return "<instruction>\\nUse the python tool.\\n</instruction>"
    if last.startswith("Output:"):
        return f"Answer: {last.split()[1]}"
    a, b = re.findall(r"\\d+", last)[:2]
    shown = "Question:" in system or len(request.messages) > 2
    taught = shown or "python" in system or request.policy
    if not taught and int(a) % 2:
        return "Answer: 42"
    return f"```python\\nprint({a} * {b})\\n```"
'''


def make(root: Path, *, yaml: str = YAML, parts: str = PARTS, name: str = "tiny") -> Path:
    """Write the workspace; the folder of its workflow."""
    folder = root / "workflows" / name
    folder.mkdir(parents=True)
    (folder / "workflow.yaml").write_text(yaml)
    (folder / "parts.py").write_text(parts)
    rows = [
        {
            "id": f"{split}-{n}", "prompt": f"Multiply {n} by {n + 50}.",
            "expected": str(n * (n + 50)), "family": "products", "split": split,
        }
        for split, count, first in (("train", 24, 10), ("heldout", 40, 70))
        for n in range(first, first + count)
    ]  # fmt: skip
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
