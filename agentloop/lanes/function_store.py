"""Functions that agents wrote: kept by name with their versions, found again for another task.

Goes in: functions and the task that each was written for. Comes out: those that fit a new task, by
where they come from, by words, by meaning, or by both. Only what passes a smoke test in the sandbox
(`sound`) is to be shown to a model. The decision worth knowing: a name stands for its latest
version, and the earlier ones stay readable.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from agentloop.errors import UsageError
from agentloop.ports import Embedder, Sandbox
from agentloop.records import Skill, Task
from agentloop.skills.search import WIDTH, Meaning, Words, fuse
from agentloop.tools.functions import Function, called, source

By = Literal["scenario", "words", "meaning", "fused"]


@dataclass(frozen=True)
class Kept:
    """A version of a function, and the task it was written for."""

    function: Function
    task: Task
    version: int


class FunctionStore:
    """Functions by name; one for each rollout, or one for many tasks."""

    def __init__(self) -> None:
        self._versions: dict[str, list[Kept]] = {}

    def add(self, function: Function, task: Task) -> Kept:
        """Keep it as the latest of its name; the same source again is no new version."""
        before = self._versions.setdefault(function.name, [])
        if not before or before[-1].function.code != function.code:
            before.append(Kept(function, task, len(before) + 1))
        return before[-1]

    def latest(self) -> list[Kept]:
        """Of each name, in the order in which the names came."""
        return [versions[-1] for versions in self._versions.values()]

    def versions(self, name: str) -> list[Kept]:
        """All of one name, oldest first; none for a name that is not known."""
        return list(self._versions.get(name, ()))

    def pick(self, task: Task, k: int, *, by: By, embedder: Embedder | None = None) -> list[Kept]:
        """Up to `k`, best first. `scenario` takes those written for a sibling of `task`; the others
        compare prompts and never look at it. Raises `UsageError` for `meaning` without an embedder.
        """
        if by == "scenario":
            wanted = task.data.get("scenario")
            return [one for one in self.latest() if one.task.data.get("scenario") == wanted][:k]
        found = {one.function.name: one for one in self.latest()}
        faces = [(name, _face(one)) for name, one in found.items()]
        rankings = []
        if by in ("words", "fused"):
            words = Words(faces)
            rankings.append([name for name, _ in words.near(task.prompt, WIDTH)])
            words.close()
        if by in ("meaning", "fused"):
            if embedder is None:
                raise UsageError("finding functions by meaning needs an embedder; give one")
            meaning = Meaning(faces, embedder)
            rankings.append([name for name, _ in meaning.near(task.prompt, WIDTH)])
        return [found[name] for name, _ in fuse(rankings)[:k]]


def _face(kept: Kept) -> Skill:
    """What is compared: the prompt that it was written for, not its code."""
    return Skill(name=kept.function.name, description=kept.task.prompt, document="")


async def sound(
    functions: Iterable[Function], sandbox: Sandbox, calls: Collection[str] = ()
) -> list[Function]:
    """Those that can be defined in the sandbox, and that call nothing but `calls`, Python's own,
    each other and what they make themselves. Raises the `SandboxError` of the sandbox."""
    kept = list(functions)
    while True:
        names = {*calls, *dir(builtins), *(one.name for one in kept)}
        good = [one for one in kept if not _strangers(one, names)]
        if len(good) == len(kept):
            break
        kept = good  # what called one that is gone is no good either
    found = []
    for one in kept:
        if not (await sandbox.run(f"{source([one])}\nprint({one.name!r})")).error:
            found.append(one)
    return found


def _strangers(function: Function, known: Collection[str]) -> set[str]:
    """Names that a function calls and that nobody defines."""
    nodes = list(ast.walk(ast.parse(source([function]))))
    own = {
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    own |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {one.asname or one.name for one in nodes if isinstance(one, ast.alias)}
    return set(called(function.code)) - own - set(known)
