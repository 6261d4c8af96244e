"""The scoring process: `python -m agentloop.training.score_worker BASE REWARD_MODEL`.

In: lines of rows as JSON on stdin. Out: a line when it is ready, then one line of scores for each;
it ends with its stdin or with the process that started it. Whatever a library prints goes to
stderr, also while it is imported.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from agentloop.errors import AgentLoopError, UsageError
from agentloop.records import Row
from agentloop.training.worker import die_with_parent
from agentloop.trajectories import codec

Score = Callable[[Sequence[Row]], list[float]]


def main(arguments: Sequence[str]) -> int:
    """Answer until stdin ends; the last line on stderr says what went wrong."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m agentloop.training.score_worker BASE REWARD_MODEL\n")
        return 2
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        from agentloop.training.reward_model import load

        score = load(*arguments)
        answers.write(json.dumps({"ready": True}) + "\n")
        answers.flush()
        for line in sys.stdin:
            answers.write(json.dumps(_reply(score, line)) + "\n")
            answers.flush()
    except (AgentLoopError, OSError) as error:
        sys.stderr.write(str(error).replace("\n", " ") + "\n")
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _reply(score: Score, line: str) -> dict[str, Any]:
    try:
        return {"scores": score([codec.from_json(Row, row) for row in json.loads(line)])}
    except UsageError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
