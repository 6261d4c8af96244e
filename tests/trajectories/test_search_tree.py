"""The search over steps: bounds, back-up, budget, cache, and a tree that survives JSON."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from agentloop.errors import UsageError
from agentloop.trajectories import search_tree
from agentloop.trajectories.search_tree import (
    EVALUATE,
    GENERATE,
    SearchSettings,
    Tree,
    TreeNode,
    answer_node,
    back_up,
    bound,
    new_tree,
    path_of,
    proposed,
    reflected,
    search,
    select,
    states_answer,
    valued,
    wanted,
)

DEPTH = 4


class World:
    """Steps are numbers; a path is solved at `DEPTH`; every question is noted."""

    def __init__(self, seed: int, kinds: int = 1000) -> None:
        self.chance = random.Random(seed)
        self.kinds = kinds
        self.asked: list[tuple[str, ...]] = []
        self.proposals = 0

    def propose(self, path: list[str]) -> str:
        self.proposals += 1
        return f"step {self.chance.randrange(self.kinds)} after {len(path)}"

    def value(self, path: list[str]) -> float:
        self.asked.append(tuple(path))
        return random.Random("/".join(path)).random()

    def solved(self, path: list[str]) -> bool:
        return len(path) == DEPTH

    def search(self, settings: SearchSettings) -> Tree:
        return search(settings, propose=self.propose, solved=self.solved, value=self.value)


def child(value: float, visits: int) -> TreeNode:
    return TreeNode(parent=0, step="s", value=value, visits=visits, children=[], solved=False)


def test_the_bound_is_that_of_the_source() -> None:
    settings = SearchSettings(exploration=0.5, unvisited=0.7)
    assert bound(child(0.3, 0), 9, settings) == pytest.approx(1.0)
    assert bound(child(0.3, 4), 9, settings) == pytest.approx(
        0.3 + 0.5 * math.sqrt(2 * math.log(9) / 4)
    )
    assert bound(child(0.3, 1), 1, settings) == pytest.approx(0.3)


def test_constants_are_the_authors() -> None:
    assert (EVALUATE.exploration, EVALUATE.unvisited, EVALUATE.gate) == (0.4, 0.8, 0.9)
    assert (EVALUATE.rounds, EVALUATE.forward, EVALUATE.full) == (100, 2, False)
    assert (GENERATE.exploration, GENERATE.unvisited, GENERATE.gate) == (0.5, 0.9, 0.8)
    assert (GENERATE.rounds, GENERATE.forward, GENERATE.full) == (50, 1, True)
    for one in (EVALUATE, GENERATE, SearchSettings()):
        assert (one.branch, one.blend, one.tries) == (3, 0.5, 3)


settings_of = st.builds(
    SearchSettings,
    calls=st.integers(1, 60), rounds=st.integers(1, 40), branch=st.integers(1, 4),
    max_depth=st.integers(1, 6), gate=st.floats(0.0, 1.0), forward=st.integers(0, 3),
    blend=st.floats(0.0, 1.0), full=st.booleans(),
)  # fmt: skip


@how(deadline=None)
@given(settings_of, st.integers(0, 10_000), st.sampled_from([3, 1000]))
def test_whatever_the_settings(settings: SearchSettings, seed: int, kinds: int) -> None:
    world = World(seed, kinds)
    tree = world.search(settings)
    assert world.proposals == tree["calls"] <= settings.calls
    assert tree["rounds"] <= settings.rounds
    assert len(world.asked) == len(set(world.asked)) == tree["valued"], "a known value is reused"
    for at, node in enumerate(tree["nodes"]):
        steps = path_of(tree, at)
        assert len(steps) <= settings.max_depth and 0.0 <= node["value"] <= 1.0
        assert len(set(steps)) == len(steps)
        siblings = [tree["nodes"][one]["step"] for one in node["children"]]
        assert len(set(siblings)) == len(siblings)
        visits = sum(tree["nodes"][one]["visits"] for one in node["children"])
        if visits:  # the mean of the children, weighted by their visits
            total = sum(
                tree["nodes"][one]["value"] * tree["nodes"][one]["visits"]
                for one in node["children"]
            )
            assert node["value"] == pytest.approx(total / visits)
    answered = tree["nodes"][answer_node(tree)]
    if any(len(path) == DEPTH for path in world.asked):
        assert answered["solved"], "a solution that was met is never lost"
    if tree["found"] is not None:
        assert answered["solved"] and not answered["children"] and not settings.full


@how(deadline=None, max_examples=50)
@given(settings_of, st.integers(0, 1000))
def test_cut_off_at_any_phase_it_goes_on_from_json(settings: SearchSettings, seed: int) -> None:
    whole, parts = World(seed), World(seed)
    tree = new_tree()
    for _ in range(10_000):
        if tree["phase"] == "done":
            break
        kept = json.dumps(tree)
        changed = search_tree.copied(tree)
        advance(changed, settings, parts)
        assert json.dumps(tree) == kept, "a copy shares nothing that is changed"
        tree = json.loads(json.dumps(changed))
    assert tree == whole.search(settings)


def advance(tree: Tree, settings: SearchSettings, world: World) -> None:
    paths = wanted(tree, settings)
    steps: dict[str, Callable[[], Any]] = {
        "select": lambda: select(tree, settings),
        "propose": lambda: proposed(tree, settings, [world.propose(path) for path in paths]),
        "reflect": lambda: reflected(tree, settings, [world.solved(path) for path in paths]),
        "value": lambda: valued(tree, settings, [world.value(path) for path in paths]),
        "back_up": lambda: back_up(tree),
    }
    steps[tree["phase"]]()


def test_the_first_good_solution_ends_it_unless_all_are_wanted() -> None:
    one = World(1).search(SearchSettings(gate=0.0, calls=200))
    assert one["found"] is not None and one["calls"] < 200
    assert answer_node(one) == one["found"]
    many = World(1).search(SearchSettings(gate=0.0, calls=200, full=True))
    assert many["calls"] > one["calls"]
    assert sum(node["solved"] for node in many["nodes"]) > 1


def test_a_high_value_without_an_answer_is_no_solution() -> None:
    world = World(0)
    tree = search(
        SearchSettings(calls=40), propose=world.propose, solved=lambda path: False,
        value=lambda path: 1.0,
    )  # fmt: skip
    assert tree["found"] is None


def test_no_step_and_a_repeated_step_are_refused_and_asked_for_again() -> None:
    said = iter(["", " x", "step 1", "step 2", "step 2", "ok then"])
    tree, settings = new_tree(), SearchSettings(branch=3)
    select(tree, settings)
    proposed(tree, settings, [next(said) for _ in wanted(tree, settings)])
    assert tree["phase"] == "propose" and tree["fresh"] == ["step 1"]
    assert len(wanted(tree, settings)) == 2
    proposed(tree, settings, [next(said) for _ in wanted(tree, settings)])
    assert tree["phase"] == "reflect" and tree["fresh"] == ["step 1", "step 2"]
    assert tree["calls"] == 5


def test_a_model_that_says_nothing_is_given_up() -> None:
    tree = search(
        SearchSettings(rounds=4, calls=1000), propose=lambda path: "", solved=lambda path: True,
        value=lambda path: 1.0,
    )  # fmt: skip
    assert tree["calls"] == 4 * 3 * 3 and len(tree["nodes"]) == 1
    assert answer_node(tree) == 0


def test_answers_that_were_not_asked_for_are_an_error() -> None:
    tree, settings = new_tree(), SearchSettings()
    select(tree, settings)
    with pytest.raises(UsageError, match="asked for 3 answers in its phase `propose`"):
        proposed(tree, settings, ["one"])


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("Answer: 7", True), ("**Answer**: 7", True), ("So the answer is 7.", True),
        ("\\boxed{7}", True), ("3 + 4 = 7", False), ("We answer in steps.", False),
        ("The answers are many", False), ("", False),
    ],
)  # fmt: skip
def test_what_states_an_answer(text: str, states: bool) -> None:
    assert states_answer(text) is states


def test_a_step_rolled_forward_is_a_child_when_its_path_is_expanded() -> None:
    world = World(3)
    tree, settings = new_tree(), SearchSettings(branch=2, forward=1, exploration=10.0)
    while not (tree["phase"] == "select" and tree["kept"]):
        advance(tree, settings, world)
    for _ in range(100):  # until that path is the most promising one
        begins = tree["phase"] == "select"
        advance(tree, settings, world)
        if begins and tree["fresh"]:
            break
    assert tree["phase"] == "propose" and len(tree["fresh"]) == 1
    assert len(wanted(tree, settings)) == 1
    asked = len(world.asked)
    while tree["phase"] != "value":
        advance(tree, settings, world)
    advance(tree, settings, world)
    assert len(world.asked) == asked + 1, "its value is known"


def test_a_solution_met_by_the_last_step_rolled_forward_is_the_answer() -> None:
    settings = SearchSettings(calls=2, branch=1, forward=1)
    tree = search(
        settings, propose=lambda path: f"step {len(path)}", solved=lambda path: len(path) == 2,
        value=lambda path: len(path) / 4,
    )  # fmt: skip
    at = answer_node(tree)
    assert path_of(tree, at) == ["step 0", "step 1"]
    assert (tree["nodes"][at]["solved"], tree["nodes"][at]["value"]) == (True, 0.5)
    assert tree["calls"] == 2 and tree["valued"] == 2
