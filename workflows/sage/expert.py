"""What an expert does, as rows to imitate: look first and then write a function, or call the one
that is there.

Goes in: chains of tasks. Comes out: rows in the format of the agent's own rollouts, made by running
the expert's programs in the world. The decision worth knowing: only what the agent would write has
a loss; what the world prints is context.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from agentloop.lanes.chain import prompt
from agentloop.ports import Lends
from agentloop.records import Message, Row, Task
from agentloop.tools.functions import Function, functions
from agentloop.tools.world_code import WorldCode
from agentloop.training.fit import tokenizer_of
from agentloop.trajectories.chat_format import end_of_turn
from agentloop.worlds.apps.calls import CALLS
from agentloop.worlds.apps.tasks import solution
from agentloop.worlds.apps.world import Apps

SHOWN = 2
"""Records that a first look prints."""


def look(task: Task) -> str:
    """A program that shows what the first call of the expert's function gives."""
    given: Any = task.data["arguments"]
    tree = ast.parse(solution(task))
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS
    ]
    first = min(calls, key=lambda node: (node.lineno, node.col_offset))
    for keyword in first.keywords:
        if isinstance(keyword.value, ast.Name):
            keyword.value = ast.Constant(given[keyword.value.id])
    return f"print({ast.unparse(first)}[:{SHOWN}])"


async def rows(
    chains: Sequence[Sequence[Task]], system: str, base: str, sandbox: Lends
) -> list[Row]:
    """Of the first task of each chain two rows (a look, then the program), of each later one the
    same, and one in which the function of the first is there and is called."""
    tokenizer = tokenizer_of(base)
    end = end_of_turn(tokenizer)
    assert end is not None

    def row(name: str, before: Sequence[Message], code: str) -> Row:
        text = f"```python\n{code}\n```"
        ids = (*tokenizer.encode(text, add_special_tokens=False), end)
        head = (Message(role="system", content=system), *before)
        return Row(episode=name, prompt=head, segments=(ids,), sampled=(True,), group=name)

    found = []
    for chain in chains:
        for task in chain:
            asked, shown = await _looked(task, sandbox)
            reply = Message(role="assistant", content=f"```python\n{look(task)}\n```")
            found += [
                row(f"{task.id}-look", [asked], look(task)),
                row(f"{task.id}-write", [asked, reply, shown], solution(task)),
            ]
        known = functions(solution(chain[0]))
        for task in chain[1:]:
            asked = _asked(task, known)
            found.append(row(f"{task.id}-call", [asked], solution(task, known=True)))
    return found


async def _looked(task: Task, sandbox: Lends) -> tuple[Message, Message]:
    """The task, and what a first look at it shows."""
    world = Apps()
    world.reset(task, 0)
    output = await WorldCode(world, sandbox).call({"code": look(task)})
    return _asked(task, ()), Message(role="user", content=f"Output:\n{output}")


def _asked(task: Task, known: Sequence[Function]) -> Message:
    """The first message of a rollout."""
    first = Apps().reset(task, 0).text
    return Message(role="user", content=f"{prompt(task.prompt, known)}\n\n{first}")
