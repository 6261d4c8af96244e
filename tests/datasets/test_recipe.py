"""A phase's data can be made again from what was frozen, whatever was learned since."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dataset_fixtures import episode, node, replies

from agentloop.datasets.credit import (
    AttemptsCredit,
    Credit,
    GroupCredit,
    PercentileCredit,
    StepCredit,
)
from agentloop.datasets.filters import Filters, Lent
from agentloop.datasets.makers import (
    ListwiseRows,
    PreferenceRows,
    RLRows,
    RowMaker,
    SFTRows,
    UnpairedRows,
)
from agentloop.datasets.manifest import dataset_id, load_rows, read_frozen, rows_path
from agentloop.datasets.near import Dedupe, Near
from agentloop.datasets.recipe import Built, Recipe
from agentloop.errors import StoreError, UsageError
from agentloop.records import Dataset, Episode, Json, Row, Score, Task, artifact_id
from agentloop.refs import load_file
from agentloop.trajectories.rows_file import lines_of


def log() -> list[Episode]:
    """Twelve groups of four, of unround rewards, some of two replies and some forked."""
    found = []
    for at in range(48):
        turns = replies(f"call {at}", "answer") if at % 3 else replies(f"answer {at}")
        if at % 5 == 0:
            last = len(turns.nodes)
            more = (node(0, "user", (500 + at,), "Again."), node(last, "assistant", (600 + at,)))
            turns = replace(turns, nodes=(*turns.nodes, *more))
        sampled = sum(one.sampled for one in turns.nodes)
        found.append(
            episode(
                f"ep-{at:02}", 0.1 * (at * 7 % 11), turns, task=f"t{at // 4}", started=float(at),
                steps=tuple(0.1 * (at + step) for step in range(sampled)),
                parts={"first": 0.1 * (at % 3)},
            )
        )  # fmt: skip
    return found


RECIPES = {
    "sft": Recipe(select=Filters(success=True), rows=SFTRows(), system="Be brief."),
    "group": Recipe(select=Filters(), rows=RLRows(), credit=GroupCredit(baseline="mean_std")),
    "percentile": Recipe(select=Filters(limit=20), rows=RLRows(), credit=PercentileCredit()),
    "steps": Recipe(select=Filters(mixed_groups=True), rows=RLRows(), credit=StepCredit()),
    "attempts": Recipe(select=Filters(), rows=RLRows(), credit=AttemptsCredit()),
    "pairs": Recipe(select=Filters(), rows=PreferenceRows(bare=True), system="x"),
    "alone": Recipe(select=Filters(cap_per_task=2), rows=UnpairedRows()),
    "lists": Recipe(select=Filters(), rows=ListwiseRows(most=3)),
}
HELD_OUT = [Task(id="h", prompt="held out")]


class Flat:
    """An embedder that finds all texts alike."""

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[1.0, 0.0] for _ in texts]


def frozen(recipe: Recipe, root: Path) -> tuple[Built, Dataset]:
    built = recipe.build(log(), Lent(held_out=HELD_OUT))
    return built, recipe.freeze(built, root, parents=["dataset-1"])


@pytest.mark.parametrize("name", RECIPES)
def test_rows_are_made_again_to_the_byte_after_late_signals(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    built, dataset = frozen(recipe, tmp_path)
    directory = tmp_path / dataset_id(dataset)
    assert built.rows
    late = {
        one.id: replace(one, score=replace(one.score, value=0.123, success=False, parts={}))  # type: ignore[type-var]
        for one in reversed(log())
    }
    made = recipe.again(directory, late.get)
    whole = b"".join(line + b"\n" for line in lines_of(made.rows))
    assert whole == rows_path(tmp_path, dataset).read_bytes()
    assert sorted(map(repr, load_rows(rows_path(tmp_path, dataset)))) == sorted(
        map(repr, built.rows)
    )


CHOOSY = [
    Filters(success=True), Filters(limit=5), Filters(cap_per_task=1), Filters(dedupe=Dedupe()),
    Filters(near=Near(text="t", k=7)), Filters(min_reward=0.3, mixed_groups=True),
]  # fmt: skip


@pytest.mark.parametrize("select", CHOOSY)
@pytest.mark.parametrize(
    "credit", [GroupCredit(), PercentileCredit(), StepCredit(), AttemptsCredit()]
)
def test_a_choice_within_a_group_does_not_move_its_baseline(
    select: Filters, credit: Credit, tmp_path: Path
) -> None:
    def blind(kind: str, text: str, k: int) -> list[tuple[str, float]]:
        raise AssertionError("48 are measured without one")

    recipe = Recipe(select=select, rows=RLRows(), credit=credit)
    built = recipe.build(log(), Lent(search=blind, embedder=Flat()))
    assert 0 < len(built.chosen.episodes) < 48
    whole = Recipe(select=Filters(), rows=RLRows(), credit=credit).build(log())
    assert set(built.rows) < set(whole.rows)
    dataset = recipe.freeze(built, tmp_path)
    late = {
        one.id: replace(one, score=Score(value=0.9, success=True, source="late"))
        for one in log()
    }  # fmt: skip
    made = recipe.again(tmp_path / dataset_id(dataset), late.get)
    assert lines_of(made.rows) == lines_of(built.rows)


def test_the_same_recipe_freezes_the_same_dataset_in_any_order(tmp_path: Path) -> None:
    recipe = RECIPES["group"]
    _, first = frozen(recipe, tmp_path)
    built = recipe.build(log()[::-1], Lent(held_out=HELD_OUT))
    assert recipe.freeze(built, tmp_path, parents=["dataset-1"]) == first
    assert len(list(tmp_path.iterdir())) == 1
    assert dataset_id(first) == artifact_id(first)


def test_the_manifest_tells_lineage_split_and_what_was_left_out(tmp_path: Path) -> None:
    recipe = Recipe(
        select=Filters(success=True, cap_per_task=1), rows=SFTRows(), system="Be brief."
    )
    broken = replace(log()[0], id="broken", score=None)
    text_only = replace(
        log()[1], id="text", task=Task(id="text", prompt="p"),
        score=replace(log()[1].score, success=True),  # type: ignore[type-var]
        trajectories=tuple(
            replace(each, nodes=tuple(replace(n, token_ids=()) for n in each.nodes))
            for each in log()[1].trajectories
        ),
    )  # fmt: skip
    built = recipe.build([*log(), broken, text_only], Lent(held_out=HELD_OUT, now=5.0))
    dataset = recipe.freeze(built, tmp_path, parents=["dataset-1"])
    spec: dict[str, Any] = json.loads(
        (tmp_path / dataset_id(dataset) / "manifest.json").read_text()
    )["dataset"]["spec"]
    assert spec["select"]["use"] == "agentloop.datasets.filters:Filters"
    assert (spec["select"]["success"], spec["select"]["cap_per_task"]) == (True, 1)
    assert spec["select"]["purposes"] == ["collect"]  # defaults are told: they may change
    assert spec["rows"] == {"use": "agentloop.datasets.makers:SFTRows"}
    assert spec["resolved"] == {"now": 5.0, "versions": []}
    assert (spec["split"]["name"], spec["split"]["held_out"]) == ("train", 1)
    assert spec["parents"] == {"bundles": ["b"], "policies": ["base"], "runs": ["r"]}
    assert spec["after"] == ["dataset-1"]
    right = sum(one.success for one in log())
    assert spec["left_out"] == {
        "episodes": {
            "broken or unscored": 1,
            "cap_per_task": right - 12,
            "success": 48 - right,
        },
        "trajectories": {"no_token_ids": 1},
    }
    assert built.left_out == spec["left_out"]


def test_ids_scores_shares_and_nearness_are_frozen(tmp_path: Path) -> None:
    def search(kind: str, text: str, k: int) -> list[tuple[str, float]]:
        raise AssertionError("48 are measured without one")

    recipe = Recipe(select=Filters(near=Near(text="t", k=5)), rows=SFTRows())
    built = recipe.build(log(), Lent(search=search, embedder=Flat()))
    dataset = recipe.freeze(built, tmp_path)
    _, kept = read_frozen(tmp_path / dataset_id(dataset))
    assert [one.id for one in kept] == [f"ep-{at:02}" for at in range(5)]
    scores = {one.id: one.score for one in log()}
    assert all(one.score == scores[one.id] and one.nearness == 1.0 for one in kept)
    assert [one.share for one in kept] == [built.chosen.shares[one.id] for one in kept]
    paid = replace(recipe, rows=RLRows(), credit=GroupCredit())
    dataset = paid.freeze(paid.build(log(), Lent(search=search, embedder=Flat())), tmp_path)
    _, kept = read_frozen(tmp_path / dataset_id(dataset))
    assert {one.id: one.score for one in kept} == scores  # those compared with are kept, too
    assert [one.id for one in kept if one.chosen] == [f"ep-{at:02}" for at in range(5)]


def test_how_the_rows_are_learned_from_is_frozen(tmp_path: Path) -> None:
    recipe = RECIPES["group"]
    built = recipe.build(log())
    training: dict[str, Json] = {
        "method": "m:train", "settings": {"epochs": 2}, "seed": 7, "base": "tiny", "parent": None,
    }  # fmt: skip
    dataset = recipe.freeze(built, tmp_path, training=training)
    kept, _ = read_frozen(tmp_path / dataset_id(dataset))
    assert kept == dataset
    assert kept.spec["training"] == training
    other = recipe.freeze(built, tmp_path, training={**training, "seed": 8})
    assert dataset_id(other) != dataset_id(dataset)
    assert other.sha256 == dataset.sha256
    assert recipe.freeze(built, tmp_path).spec["training"] == {}


PARTS = """
from agentloop.datasets.credit import GroupCredit
from agentloop.ports import part


@part
class Own:
    times: float = 1.0

    def assign(self, episodes):
        found = GroupCredit().assign(episodes)
        return {place: self.times * one for place, one in found.items()}
"""


def test_a_copy_of_the_workflow_elsewhere_makes_the_same_rows_again(tmp_path: Path) -> None:
    def recipe(folder: str, text: str) -> Recipe:
        path = tmp_path / folder / "parts.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return Recipe(select=Filters(), rows=RLRows(), credit=load_file(path).Own())

    _, dataset = frozen(recipe("a", PARTS), tmp_path / "datasets")
    directory = tmp_path / "datasets" / dataset_id(dataset)
    load = {one.id: one for one in log()}.get
    copy = recipe("b", PARTS)
    assert copy.spec()["credit"] == dataset.spec["credit"]
    assert lines_of(copy.again(directory, load).rows)
    changed = recipe("c", PARTS.replace("1.0", "2.0"))
    assert changed.spec()["credit"] != dataset.spec["credit"]
    with pytest.raises(UsageError, match="another `credit`"):
        changed.again(directory, load)


def test_what_the_rows_do_not_hold_may_be_another(tmp_path: Path) -> None:
    load = {one.id: one for one in log()}.get
    recipe = RECIPES["group"]
    _, dataset = frozen(recipe, tmp_path)
    moved = replace(recipe, system="Be kind.", select=Filters(limit=3))  # exact rows have neither
    assert len(moved.again(tmp_path / dataset_id(dataset), load).rows) == dataset.rows
    imitated = RECIPES["sft"]
    _, dataset = frozen(imitated, tmp_path)
    assert replace(imitated, credit=GroupCredit()).again(tmp_path / dataset_id(dataset), load).rows
    with pytest.raises(UsageError, match="another `system`"):
        replace(imitated, system="Be kind.").again(tmp_path / dataset_id(dataset), load)


def test_what_cannot_be_made_again_is_said(tmp_path: Path) -> None:
    recipe = RECIPES["group"]
    _, dataset = frozen(recipe, tmp_path)
    directory = tmp_path / dataset_id(dataset)
    by = {one.id: one for one in log()}
    other = replace(recipe, credit=GroupCredit(), select=Filters(limit=9))
    with pytest.raises(UsageError, match="another `credit`"):
        other.again(directory, by.get)
    moved = replace(by["ep-07"], trajectories=(replies("another"),))
    with pytest.raises(StoreError, match="cannot be made again from this log"):
        recipe.again(directory, (by | {"ep-07": moved}).get)
    by.pop("ep-07")
    with pytest.raises(StoreError, match=r"`ep-07`.* not in the log"):
        recipe.again(directory, by.get)
    chosen = directory / "chosen.jsonl"
    chosen.write_bytes(chosen.read_bytes().replace(b'"ep-01"', b'"ep-47"'))
    with pytest.raises(StoreError, match="was changed"):
        recipe.again(directory, by.get)


def test_a_dataset_without_a_recipe_has_nothing_to_make_again(tmp_path: Path) -> None:
    from agentloop.datasets.manifest import freeze

    dataset = freeze([Row(episode="e", prompt=(), segments=((1,),), sampled=(True,))], {}, tmp_path)
    with pytest.raises(UsageError, match="keeps no chosen episodes"):
        read_frozen(tmp_path / dataset_id(dataset))


def test_rows_with_advantages_need_a_credit() -> None:
    with pytest.raises(UsageError, match="name a `credit`"):
        Recipe(select=Filters(), rows=RLRows()).build(log())
    makers: list[object] = [SFTRows(), RLRows(), PreferenceRows(), UnpairedRows(), ListwiseRows()]
    assert all(isinstance(one, RowMaker) for one in makers)
