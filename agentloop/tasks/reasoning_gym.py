"""Procedural tasks of the `reasoning-gym` library, and that library's own grader of answers.

In: family names with their settings. Out: `Task` records whose `data` holds all the grader needs.
The decision worth knowing: a *question text* belongs to `train` or to `heldout` by its hash, and a
draw keeps only the questions of its split, so no pair of seeds can make the two overlap, however
few questions a family has. This module is the library's only home.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from types import ModuleType
from typing import Any

from agentloop.errors import MissingDependency, UnknownName, UsageError
from agentloop.ports import Split, part
from agentloop.records import Episode, Json, Task, content_id
from agentloop.tasks.split import fraction, interleave, is_heldout

_BLOCK = 500
"""Items per generated dataset (the library's own default size)."""
_PATIENCE = _BLOCK
"""Items in a row without a new question of the split after which a family counts as used up."""
_NEEDS_PYCOSAT = "zebra_puzzles"
_HASH_ORDERED = frozenset(
    {"isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"}
)
"""Families that iterate over sets of strings: they repeat only under a fixed PYTHONHASHSEED."""
EVALUATING = frozenset(
    {
        "binary_matrix", "countdown", "intermediate_integration", "n_queens",
        "polynomial_multiplication", "puzzle24", "simple_integration", "spiral_matrix",
        "string_insertion",
    }
)  # fmt: skip
"""Families whose grader evaluates the answer as an expression (Python's `eval` or sympy's)."""


@part
class ReasoningGym:
    """Tasks of `families`: a list of names, or names with settings of their generators.

    A family is `heldout` for 30 % of its questions. Raises (in `draw`) `MissingDependency` when
    the library is not installed, `UnknownName` and `UsageError` for a wrong family or setting.
    """

    families: dict[str, dict[str, Json]] | list[str]

    def draw(self, n: int, *, split: Split, seed: int) -> list[Task]:
        """`n` different questions of `split`, families in turn; fewer when all are used up."""
        named = self.families if isinstance(self.families, dict) else dict.fromkeys(self.families)
        if not named:
            raise UsageError("`families` is empty; name at least one, such as `gcd`")
        for family, settings in named.items():
            _check(family, settings or {})
        questions = [_questions(name, given or {}, split, seed) for name, given in named.items()]
        return list(islice(interleave(questions), n))

    def learn(self, episodes: Sequence[Episode]) -> None:
        """The generators are fixed."""


def score_answer(task: Task, answer: str) -> float:
    """The library's score of `answer`, usually in [0, 1]; an `EVALUATING` family gets only
    arithmetic to evaluate, anything else scores 0. Such a one can take for ever: give it a process
    of its own (`task.data["isolate"]`)."""
    family = str(task.data["family"])
    if family in EVALUATING and not _harmless(answer):
        return 0.0
    entry = {
        "question": task.prompt,
        "answer": task.expected,
        "metadata": thaw(task.data["entry"]),
    }
    grader = _grader(family, json.dumps(task.data.get("settings", {}), sort_keys=True))
    return float(grader.score_answer(answer=answer, entry=entry))


def _questions(family: str, settings: dict[str, Json], split: Split, seed: int) -> Iterator[Task]:
    start = int(fraction("seed", family, seed) * 2**31)
    seen: set[str] = set()
    idle = 0
    for block in range(2**31 // _BLOCK):
        dataset = _dataset(family, {**settings, "seed": start + block * _BLOCK, "size": _BLOCK})
        for index in range(_BLOCK):
            item = dataset[index]
            question = str(item["question"])
            if is_heldout(question) == (split == "heldout") and question not in seen:
                seen.add(question)
                idle = 0
                yield _task(family, settings, question, item)
            else:
                idle += 1
                if idle >= _PATIENCE:
                    return


def _task(family: str, settings: dict[str, Json], question: str, item: dict[str, Any]) -> Task:
    data: dict[str, Json] = {"family": family, "entry": freeze(item["metadata"])}
    if settings:
        data["settings"] = settings  # some graders read them
    if family in EVALUATING:
        data["isolate"] = True
    return Task(
        id=content_id(family, question),
        prompt=question,
        expected=freeze(item["answer"]),
        family=family,
        data=data,
    )


def _check(family: str, settings: dict[str, Json]) -> None:
    known = _library("reasoning_gym.factory").DATASETS
    if family not in known:
        raise UnknownName("reasoning_gym family", family, known)
    if family == _NEEDS_PYCOSAT and importlib.util.find_spec("pycosat") is None:
        raise UsageError(
            f"the family `{family}` needs `pycosat`, which has to be compiled; "
            "choose another, or run: pip install pycosat"
        )
    if family in _HASH_ORDERED and os.environ.get("PYTHONHASHSEED", "random") == "random":
        raise UsageError(
            f"the family `{family}` makes other tasks in every process; "
            "choose another, or set PYTHONHASHSEED=0"
        )
    fields = {field.name for field in dataclasses.fields(known[family][1])} - {"seed", "size"}
    for key in settings:
        if key not in fields:
            raise UnknownName(f"setting of the family `{family}`", key, fields)


def _dataset(family: str, settings: dict[str, Any]) -> Any:
    try:
        return _library("reasoning_gym").create_dataset(family, **settings)
    except Exception as error:  # the library checks settings by assertions of many kinds
        raise UsageError(
            f"the family `{family}` refused its settings: {str(error) or repr(error)}"
        ) from error


@cache
def _grader(family: str, settings: str) -> Any:
    known = _library("reasoning_gym.factory").DATASETS
    if family not in known:
        raise UnknownName("reasoning_gym family", family, known)
    return _dataset(family, {**json.loads(settings), "seed": 0, "size": 1})


def _library(name: str) -> ModuleType:
    """Import `name`, lending the library an empty `pycosat` where the real one is missing: only
    one family calls it, but all of the library imports it."""
    lent = "pycosat" not in sys.modules and importlib.util.find_spec("pycosat") is None
    if lent:
        sys.modules["pycosat"] = ModuleType("pycosat")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = (error.name or "reasoning_gym").partition(".")[0].replace("_", "-")
        what = "`reasoning-gym`"
        if missing != "reasoning-gym":
            what = f"`{missing}` (needed by `reasoning-gym`)"
        raise MissingDependency(what, "agentloop setup local") from error
    finally:
        if lent:
            del sys.modules["pycosat"]


def freeze(value: Any) -> Json:
    """A generator's value as JSON from which `thaw` makes an equal one: a tuple becomes
    `{"$tuple": [...]}`, a dict with keys that are not texts `{"$dict": [[key, value], ...]}`."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value)  # numpy's texts too
    if isinstance(value, list):
        return [freeze(item) for item in value]
    if isinstance(value, tuple):
        return {"$tuple": [freeze(item) for item in value]}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {str(key): freeze(item) for key, item in value.items()}
        return {"$dict": [[freeze(key), freeze(item)] for key, item in value.items()]}
    raise UsageError(f"a generated task holds a {type(value).__name__}, which cannot be stored")


def thaw(value: Any) -> Any:
    """What `freeze` was given."""
    if isinstance(value, list):
        return [thaw(item) for item in value]
    if isinstance(value, dict):
        match value:
            case {"$tuple": list(items)}:
                return tuple(thaw(item) for item in items)
            case {"$dict": list(pairs)}:
                return {thaw(key): thaw(item) for key, item in pairs}
        return {key: thaw(item) for key, item in value.items()}
    return value


_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, ast.Name, ast.Load, ast.List, ast.Tuple,
    ast.Call, ast.operator, ast.unaryop,
)  # fmt: skip
_FUNCTIONS = frozenset(
    {
        "Abs", "abs", "acos", "asin", "atan", "cos", "cosh", "cot", "csc", "exp", "ln", "log",
        "sec", "sin", "sinh", "sqrt", "tan", "tanh",
    }
)  # fmt: skip


def _harmless(answer: str) -> bool:
    """Whether evaluating `answer` can only compute: numbers, texts, lists, operators, names, and
    calls of the functions of elementary calculus. What is not an expression at all passes when it
    holds no bracket and no dot, for then nothing in it can be called or reached into."""
    text = answer.strip()
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return not any(sign in text for sign in "([{.")
    for node in ast.walk(tree):
        if not isinstance(node, _ARITHMETIC):
            return False
        if isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords
        ):
            return False
    return True
