"""Your grader: one typed function. It sees the agent's final answer and one row of tasks.jsonl."""

import re

from agentloop import Score, Task


def grade(answer: str, task: Task) -> Score:
    """Right when every expected word is in the answer; learners read the feedback."""
    said = set(re.findall(r"[\w.+-]*\w", answer))
    expected = re.findall(r"[\w.+-]*\w", str(task.expected))
    missing = [word for word in expected if word not in said]
    value = 1.0 - len(missing) / max(len(expected), 1)
    feedback = f"{missing[0]} is missing" if missing else "right"
    return Score(value=value, success=not missing, source="grader.py", feedback=feedback)
