"""The rule world behind an endpoint: one script that plays the agent and the reflector.

A task names the rules that it needs; the agent applies those of them that its system text mentions,
and the grader says which one is missing. As the reflector it adds one of the rules that the
feedback reports (30 %: two) and forgets each rule it held with p = 0.03. Every choice is a
function of the request, so equal requests get equal replies.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from fake_endpoint import chat

_RULE = re.compile(r"RULE-\d\d")
_FAILED = re.compile(r'<case result="failed">(.*?)</case>', re.S)
_FEEDBACK = re.compile(r"<feedback>(.*?)</feedback>", re.S)
_LIST = "\nKeep these rules in mind: "


def rows(n: int, *, rules: int = 24, needs: int = 3, seed: int = 0) -> list[dict[str, Any]]:
    """`n` different tasks as rows of a JSONL file; the split is left to the reader."""
    rng = random.Random(seed)
    found: list[dict[str, Any]] = []
    for number in range(n):
        chosen = [f"RULE-{rule:02d}" for rule in sorted(rng.sample(range(rules), needs))]
        text = " ".join(chosen)
        found.append({"prompt": f"Request {number} needs {text}. Apply them.", "expected": text})
    return found


def write_rows(path: Path, n: int, **world: int) -> Path:
    """The same, as a file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(n, **world)))
    return path


class RuleWorld:
    """A script for `FakeEndpoint`. With `tool`, the agent calls that tool once, with `arguments`,
    before it answers. Counts what it was asked for."""

    def __init__(
        self, *, tool: str | None = None, arguments: dict[str, Any] | None = None, seed: int = 0
    ) -> None:
        self.tool, self.arguments, self.seed = tool, arguments or {}, seed
        self.reflections = 0
        self.systems: set[str] = set()
        """Every system text that the agent was given."""

    def __call__(self, payload: dict[str, Any]) -> dict[str, Any]:
        messages = payload["messages"]
        if "<instruction>" in messages[-1]["content"]:
            self.reflections += 1
            return chat(self.reflect(messages[-1]["content"], payload))
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        self.systems.add(system)
        called = any(message["role"] == "tool" for message in messages)
        if self.tool is not None and payload.get("tools") and not called:
            return chat(None, tools=[(self.tool, self.arguments)])
        task = next(m["content"] for m in reversed(messages) if m["role"] == "user")
        known = set(_RULE.findall(system))
        applied = [rule for rule in _RULE.findall(task) if rule in known]
        return chat(f"Answer: {' '.join(applied) or 'none'}")

    def reflect(self, prompt: str, payload: dict[str, Any]) -> str:
        """A better instruction, most of the time."""
        rng = random.Random(f"{self.seed} {json.dumps(payload, sort_keys=True)}")
        found = re.search(r"<instruction>(.*?)</instruction>", prompt, re.S)
        assert found is not None
        text = found.group(1).strip()
        failed = " ".join(_FAILED.findall(prompt))
        reported = sorted(set(_RULE.findall(" ".join(_FEEDBACK.findall(failed)))))
        rng.shuffle(reported)
        held = {rule for rule in sorted(set(_RULE.findall(text))) if rng.random() >= 0.03}
        held |= set(reported[: 2 if rng.random() < 0.3 else 1])
        base = text.partition(_LIST)[0]
        return f"<instruction>\n{base}{_LIST}{' '.join(sorted(held))}\n</instruction>"
