"""A Monte-Carlo tree search over steps of text, without any input or output.

Goes in: what was asked for (proposed steps, whether a path is solved, values of paths). Comes out:
a `Tree` of plain JSON, so that a graph can keep it in its state and a checkpoint can hold it. The
decision worth knowing: a tree says in `phase` what it needs next and in `wanted` for which paths,
so a graph that asks a model and a simulation that draws numbers run the very same search.

One round, as in ReST-MCTS* (Zhang et al. 2024, arXiv 2406.03816, and its repository): select a leaf
by upper confidence bounds, propose children, value them, roll the best of them forward greedily and
blend what it reached into its value, back up visit-weighted means. A step that was rolled forward
is kept: it is among the children when its path is expanded, and not asked for again. A solution
that was only rolled forward to joins the tree when the search ends, so that it can be the answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Literal, TypedDict

from agentloop.errors import UsageError
from agentloop.records.base import record

Phase = Literal["select", "propose", "reflect", "value", "back_up", "done"]
_ANSWER = re.compile(r"\banswer(?: is\b|[ \t]*[*_`]*[ \t]*:)|\\boxed\{", re.IGNORECASE)
_SHORTEST = 2
"""Characters of the shortest step; anything shorter is no step."""


@record
class SearchSettings:
    """Defaults are the authors' of their class, of their evaluation or of their generation, chosen
    among these for a small budget; `EVALUATE` and `GENERATE` are their sets for hundreds of
    proposals."""

    calls: int = 60
    """Budget: proposals asked for, those that were refused and rolled forward included."""
    rounds: int = 100
    branch: int = 3
    max_depth: int = 8
    gate: float = 0.9
    """A solved path of at least this value ends the search."""
    exploration: float = 0.7
    """C of the bound `value + C * sqrt(2 ln N / n)`."""
    unvisited: float = 0.8
    """What a child that was never visited gets in place of the second term."""
    forward: int = 1
    """Steps that the best child is rolled forward."""
    blend: float = 0.5
    """Share of the rolled-forward value in the child's."""
    tries: int = 3
    """How often a refused proposal is asked for again."""
    full: bool = False
    """Go on after a solution: to collect many paths, or to answer with the best of them."""


EVALUATE = SearchSettings(exploration=0.4, forward=2)
"""With these the authors evaluate."""
GENERATE = SearchSettings(rounds=50, gate=0.8, exploration=0.5, unvisited=0.9, forward=1, full=True)
"""With these the authors collect training data."""


class TreeNode(TypedDict):
    """A path: its parent's steps and one more."""

    parent: int | None
    step: str
    value: float
    visits: int
    children: list[int]
    solved: bool


class Tree(TypedDict):
    """A search under way."""

    nodes: list[TreeNode]
    """The root, with no step, is the first."""
    phase: Phase
    at: int
    """The leaf of this round."""
    fresh: list[str]
    """Steps proposed for its children."""
    solved: list[bool]
    """One per fresh step, or of the step rolled forward last."""
    attempts: int
    rolled: int | None
    """The child that is rolled forward."""
    beyond: list[str]
    """Steps rolled forward from it."""
    kept: dict[str, list[str]]
    """Steps that were rolled forward earlier, by the path that they continue."""
    ahead: list[list[str]]
    """Solved paths that were rolled forward to; not all of them are in the tree yet."""
    reached: list[float]
    """Their values."""
    calls: int
    valued: int
    """Paths whose value was asked for."""
    rounds: int
    found: int | None
    """The first solved path that met the gate."""
    cache: dict[str, float]
    """Values by path."""


def new_tree() -> Tree:
    """A root and nothing else."""
    return Tree(
        nodes=[_node(None, "", 0.0, False)], phase="select", at=0, fresh=[], solved=[], attempts=0,
        rolled=None, beyond=[], kept={}, ahead=[], reached=[], calls=0, valued=0, rounds=0,
        found=None, cache={},
    )  # fmt: skip


def copied(tree: Tree) -> Tree:
    """A tree that may be changed without changing `tree` (texts are shared)."""
    made = tree.copy()
    made["nodes"] = [node.copy() for node in tree["nodes"]]
    for node in made["nodes"]:
        node["children"] = [*node["children"]]
    made["fresh"], made["solved"] = [*tree["fresh"]], [*tree["solved"]]
    made["beyond"], made["reached"] = [*tree["beyond"]], [*tree["reached"]]
    made["kept"], made["cache"] = {**tree["kept"]}, {**tree["cache"]}
    made["ahead"] = [*tree["ahead"]]
    return made


def path_of(tree: Tree, node: int) -> list[str]:
    """The steps that lead to `node`."""
    steps: list[str] = []
    at: int | None = node
    while at:  # neither the root nor beyond it
        steps.append(tree["nodes"][at]["step"])
        at = tree["nodes"][at]["parent"]
    return steps[::-1]


def states_answer(text: str) -> bool:
    """Whether a step states a final answer (`Answer: ...`, `the answer is ...`, a box)."""
    return _ANSWER.search(text) is not None


def wanted(tree: Tree, settings: SearchSettings) -> list[list[str]]:
    """The paths that the phase needs an answer for, one answer each and in this order: a next step
    (`propose`), whether it is solved (`reflect`), its value (`value`; known ones are not asked for
    again)."""
    if tree["phase"] == "propose":
        number = 1 if tree["rolled"] is not None else settings.branch - len(tree["fresh"])
        return [_here(tree)] * min(number, settings.calls - tree["calls"])
    if tree["phase"] == "reflect":
        return _new_paths(tree)
    if tree["phase"] == "value":
        unknown = [path for path in _new_paths(tree) if _key(path) not in tree["cache"]]
        return list({_key(path): path for path in unknown}.values())
    return []


def select(tree: Tree, settings: SearchSettings) -> None:
    """Walk from the root to the leaf of the highest bound; decide what to do with it."""
    if tree["calls"] >= settings.calls or tree["rounds"] >= settings.rounds:
        _join(tree)
        tree["phase"] = "done"
        return
    tree["rounds"] += 1
    at, depth = 0, 0
    while tree["nodes"][at]["children"]:
        at, depth = best_child(tree, at, settings), depth + 1
    leaf = tree["nodes"][at]
    tree["at"], tree["fresh"], tree["attempts"], tree["phase"] = at, [], 0, "propose"
    if leaf["solved"] and leaf["value"] >= settings.gate and not settings.full:
        tree["found"], tree["phase"] = at, "done"
    elif leaf["solved"] or depth >= settings.max_depth:
        tree["phase"] = "back_up"
    else:
        tree["fresh"] = tree["kept"].pop(_key(path_of(tree, at)), [])[: settings.branch]
        if len(tree["fresh"]) == settings.branch:
            tree["phase"] = "reflect"


def proposed(tree: Tree, settings: SearchSettings, texts: Sequence[str]) -> None:
    """Take the next steps for what `wanted` gave. A step that is too short or repeats one of its
    path is refused and asked for again; equal siblings are one."""
    _expect(len(texts), tree, settings)
    tree["calls"] += len(texts)
    tree["attempts"] += 1
    before = _here(tree)
    taken = [text.strip() for text in texts]
    taken = [text for text in taken if len(text) >= _SHORTEST and text not in before]
    tree["fresh"] = list(dict.fromkeys((*tree["fresh"], *taken)))
    again = tree["attempts"] < settings.tries and tree["calls"] < settings.calls
    if len(taken) < len(texts) and again:
        return
    if tree["fresh"]:
        tree["phase"] = "reflect"
    elif tree["rolled"] is None:
        tree["phase"] = "back_up"
    else:
        _settle(tree, settings)


def reflected(tree: Tree, settings: SearchSettings, solved: Sequence[bool]) -> None:
    """Take whether the new paths are solved."""
    _expect(len(solved), tree, settings)
    tree["solved"] = list(solved)
    tree["phase"] = "value"


def valued(tree: Tree, settings: SearchSettings, values: Sequence[float]) -> None:
    """Take the values of the new paths: they become children, or the end of the roll-forward."""
    asked = wanted(tree, settings)
    _expect(len(values), tree, settings)
    tree["valued"] += len(asked)
    for path, value in zip(asked, values, strict=True):
        tree["cache"][_key(path)] = float(value)
    known = [tree["cache"][_key(path)] for path in _new_paths(tree)]
    if tree["rolled"] is None:
        for step, value, solved in zip(tree["fresh"], known, tree["solved"], strict=True):
            tree["nodes"][tree["at"]]["children"].append(len(tree["nodes"]))
            tree["nodes"].append(_node(tree["at"], step, value, solved))
        best = best_child(tree, tree["at"], settings)
        tree["rolled"], tree["beyond"], tree["reached"] = best, [], []
        over = tree["nodes"][best]["solved"]
    else:
        tree["beyond"].append(tree["fresh"][0])
        tree["reached"].append(known[0])
        over = tree["solved"][0]
        if over:
            tree["ahead"].append(_here(tree))
    tree["fresh"], tree["attempts"], tree["phase"] = [], 0, "propose"
    deepest = len(_here(tree)) >= settings.max_depth
    spent = tree["calls"] >= settings.calls
    if over or deepest or spent or len(tree["beyond"]) >= settings.forward:
        _settle(tree, settings)


def back_up(tree: Tree) -> None:
    """Visits and visit-weighted means from the round's leaf up to the root."""
    at: int | None = tree["at"]
    while at is not None:
        node = tree["nodes"][at]
        node["visits"] += 1
        below = [tree["nodes"][child] for child in node["children"]]
        visits = sum(child["visits"] for child in below)
        if visits:
            node["value"] = sum(child["value"] * child["visits"] for child in below) / visits
        at = node["parent"]
    tree["phase"] = "select"


def best_child(tree: Tree, at: int, settings: SearchSettings) -> int:
    """The child of the highest bound; the oldest of equals."""
    node, nodes = tree["nodes"][at], tree["nodes"]
    return max(node["children"], key=lambda child: bound(nodes[child], node["visits"], settings))


def bound(node: TreeNode, parent_visits: int, settings: SearchSettings) -> float:
    """How promising a child is: its value, and more the less often it was looked at."""
    if not node["visits"]:
        return node["value"] + settings.unvisited
    spread = math.sqrt(2.0 * math.log(max(parent_visits, 1)) / node["visits"])
    return node["value"] + settings.exploration * spread


def answer_node(tree: Tree) -> int:
    """The node to answer with: the one that met the gate, else the solved one of the highest value,
    else the leaf of the highest value."""
    if tree["found"] is not None:
        return tree["found"]
    numbered = range(len(tree["nodes"]))
    solved = [at for at in numbered if tree["nodes"][at]["solved"]]
    leaves = [at for at in numbered if not tree["nodes"][at]["children"]]
    return max(solved or leaves, key=lambda at: tree["nodes"][at]["value"])


def search(
    settings: SearchSettings, *, propose: Callable[[list[str]], str],
    solved: Callable[[list[str]], bool], value: Callable[[list[str]], float],
) -> Tree:  # fmt: skip
    """The whole search with functions in place of a model."""
    tree = new_tree()
    while tree["phase"] != "done":
        paths = wanted(tree, settings)
        if tree["phase"] == "select":
            select(tree, settings)
        elif tree["phase"] == "propose":
            proposed(tree, settings, [propose(path) for path in paths])
        elif tree["phase"] == "reflect":
            reflected(tree, settings, [solved(path) for path in paths])
        elif tree["phase"] == "value":
            valued(tree, settings, [value(path) for path in paths])
        else:
            back_up(tree)
    return tree


def _settle(tree: Tree, settings: SearchSettings) -> None:
    """Blend what the roll-forward reached into the child it began from, and count the visit."""
    assert tree["rolled"] is not None
    child, path = tree["nodes"][tree["rolled"]], path_of(tree, tree["rolled"])
    for step in tree["beyond"]:
        known = tree["kept"].get(_key(path), [])
        tree["kept"][_key(path)] = [*dict.fromkeys((*known, step))]
        path = [*path, step]
    if tree["reached"]:
        kept = (1.0 - settings.blend) * child["value"]
        child["value"] = kept + settings.blend * max(tree["reached"])
    child["visits"] += 1
    tree["rolled"], tree["beyond"], tree["reached"] = None, [], []
    tree["phase"] = "back_up"


def _join(tree: Tree) -> None:
    """Put the solved paths that were only rolled forward to into the tree, each step with the value
    that it was given. Nothing is asked for, and no visit is counted."""
    for path in tree["ahead"]:
        at = 0
        for place, step in enumerate(path, start=1):
            below = tree["nodes"][at]["children"]
            known = (child for child in below if tree["nodes"][child]["step"] == step)
            child = next(known, None)
            if child is None:
                child = len(tree["nodes"])
                below.append(child)
                value = tree["cache"][_key(path[:place])]
                tree["nodes"].append(_node(at, step, value, place == len(path)))
            at = child


def _here(tree: Tree) -> list[str]:
    """The path that is being continued."""
    if tree["rolled"] is None:
        return path_of(tree, tree["at"])
    return [*path_of(tree, tree["rolled"]), *tree["beyond"]]


def _new_paths(tree: Tree) -> list[list[str]]:
    return [[*_here(tree), step] for step in tree["fresh"]]


def _expect(given: int, tree: Tree, settings: SearchSettings) -> None:
    if given != len(wanted(tree, settings)):
        raise UsageError(
            f"the search asked for {len(wanted(tree, settings))} answers in its phase "
            f"`{tree['phase']}` and was given {given}"
        )


def _key(path: Sequence[str]) -> str:
    return "\n\n".join(path)


def _node(parent: int | None, step: str, value: float, solved: bool) -> TreeNode:
    return TreeNode(parent=parent, step=step, value=value, visits=0, children=[], solved=solved)
