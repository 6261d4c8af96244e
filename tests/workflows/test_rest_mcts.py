"""Tree search and self-training: what one scripted cycle leaves in the log, and the toy experiment
that must fail when the part it is about is broken."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from workflow_folder import bars, folder

from agentloop.lanes.tree_search import VALUE_MODEL
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.trajectories import search_tree

FOLDER = folder("rest_mcts")
TASKS = 60


BARS = bars("rest_mcts")


def test_the_bars_are_the_source_s() -> None:
    assert BARS["over_bon@0.1"] == 2.5 and BARS["over_bon@0.2"] == 2.0


def test_the_arms_have_the_same_budget(measures: ModuleType) -> None:
    found = measures.compare(1, 5)
    for noise in measures.NOISES:
        for arm in measures.ARMS:
            assert found[f"{arm}.proposals@{noise}"] <= measures.CALLS
        assert found[f"bon.values@{noise}"] == measures.CALLS // measures.DEPTH


def test_the_search_beats_best_of_n_and_not_when_its_sign_is_flipped(
    measures: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measures.compare(5, TASKS, ("search", "bon"))["over_bon@0.1"] >= BARS["over_bon@0.1"]
    true = search_tree.bound
    monkeypatch.setattr(
        search_tree, "bound",
        lambda node, visits, settings: true({**node, "value": -node["value"]}, visits, settings),
    )  # fmt: skip
    assert measures.compare(5, TASKS, ("search", "bon"))["over_bon@0.1"] < BARS["over_bon@0.1"]


@pytest.mark.usefixtures("report")
def test_a_scripted_cycle_leaves_searches_paths_and_a_value_model(tmp_path: Path) -> None:
    with Archive(tmp_path) as archive:
        searches = archive.episodes(Query(purpose="train"))
        paths = archive.episodes(Query(purpose="collect"))
        entries = list(archive.read(Query(kinds=(VALUE_MODEL,))))
        assert len(entries) == 2 and len(searches) == sum(one.body["searches"] for one in entries)  # type: ignore[index,call-overload]
        assert len(paths) == sum(one.body["traces"] for one in entries)  # type: ignore[index,call-overload]
        assert paths and all(one.success and one.usage.tokens == 0 for one in paths)
        for path in paths:
            [trajectory] = path.trajectories
            assert [node.parent for node in trajectory.nodes] == [
                None, *range(len(trajectory.nodes) - 1)
            ]  # fmt: skip
