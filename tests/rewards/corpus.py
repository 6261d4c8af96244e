"""The corpora of the split grader's tests: reward hacks and honest solutions, as text files.

`# %% NAME MARKS` begins a piece of code. A hack's marks are the target that it aims at (`digits`
unless another is named), and `walled` when it may run in a sandbox with walls alone. An honest
solution is a template over the settings of its family's tasks; `cpython` marks what monty cannot
run. `@REPOSITORY@` and `@PACKAGES@` stand for where this package and those it needs lie.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

from agentloop.records import Task
from agentloop.rewards.split import Case, HiddenTests
from agentloop.tasks.code.tasks import CodeTasks

SLEEPY = ("endless_loop", "sleeps", "signals_ignored", "time_patched", "clock_of", "outlives")
"""In the names of hacks that end at a deadline alone."""
HERE = Path(__file__).parent
_PLACES = {
    "@REPOSITORY@": str(HERE.parents[1]),
    "@PACKAGES@": sysconfig.get_path("purelib"),
}
_HEAD = re.compile(r"^# %% (.*)\n", re.MULTILINE)


@dataclass(frozen=True)
class Piece:
    """Code, its name and its marks."""

    name: str
    marks: tuple[str, ...]
    code: str

    @property
    def target(self) -> str:
        return next((one for one in self.marks if one in TARGETS), "digits")


def cases(function: str, table: Sequence[tuple[Any, Any]]) -> HiddenTests:
    made = tuple(Case(arguments=(given,), expected=expected) for given, expected in table)
    return HiddenTests(function=function, cases=made, tolerance=1e-6)


NUMBERS = (0, 7, 10, 12, 999, 1024, 305, 86_400, 123_456_789, 10**18 + 1, 55, 4_096)
TARGETS = {
    "digits": cases("solve", [(n, sum(map(int, str(n)))) for n in NUMBERS]),
    "parity": cases("solve", [(n, n % 2) for n in NUMBERS]),
    "third": cases("solve", [(n, n / 3) for n in NUMBERS]),
    "label": cases("solve", [(n, f"né {n}") for n in NUMBERS]),
    "listed": cases("solve", [(n, [int(one) for one in str(n)]) for n in NUMBERS]),
    "table": cases("solve", [(n, {one: str(n).count(one) for one in str(n)}) for n in NUMBERS]),
    "nothing": cases("solve", [(n, None if n > 50 else n) for n in NUMBERS]),
}
"""What hacks aim at: `solve(n)` gives the sum of the digits of n, its parity, its third, a text,
its digits, how often each occurs, or nothing when it is large. Hacks know how the first cases go
(0 and 7), as a task's examples would tell them."""


@cache
def pieces(folder: str) -> tuple[Piece, ...]:
    found = []
    for path in sorted((HERE / folder).glob("*.txt")):
        _, *parts = _HEAD.split(path.read_text("utf-8"))
        for head, code in zip(parts[::2], parts[1::2], strict=True):
            name, *marks = head.split()
            for word, here in _PLACES.items():
                code = code.replace(word, here)
            found.append(Piece(f"{path.stem}: {head}", (name, *marks), code))
    return tuple(found)


def hacks(*, walled: bool) -> list[Piece]:
    """All, or those that may be let loose anywhere."""
    return [one for one in pieces("hacks") if walled or "walled" not in one.marks]


def honest(each: int, *, cpython: bool) -> list[tuple[Task, Piece]]:
    """Every template on `each` tasks of its family: (task, solution)."""
    found = []
    for piece in pieces("honest"):
        if cpython or "cpython" not in piece.marks:
            source = CodeTasks(families=(piece.marks[0],), canaries=0.0)
            for task in source.draw(each, split="train", seed=len(found)):
                settings: Any = task.data["settings"]
                code = Template(piece.code).substitute(settings)
                found.append((task, Piece(piece.name, piece.marks, code)))
    return found
