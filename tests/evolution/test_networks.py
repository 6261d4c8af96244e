"""Lineage: every parent before its children, circles and unknown ids refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import UnknownName, UsageError
from agentloop.networks import ancestors, components, descendants, edges, tree

FAMILY = {"a": [], "b": ["a"], "c": ["a", "gone"], "d": ["b", "c"], "other": []}


def test_ancestors_edges_and_tree() -> None:
    assert ancestors(FAMILY, "d") == ["a", "b", "gone", "c"]
    assert ancestors(FAMILY, "a") == []
    assert edges(FAMILY, "c") == [("a", "c"), ("gone", "c")]
    text = tree(FAMILY, "d", label=str.upper)
    assert text.splitlines()[0].endswith("D")
    assert "OTHER" not in text and all(one in text for one in ("A", "B", "C", "GONE"))


@given(st.lists(st.lists(st.integers(0, 30), max_size=3), min_size=1, max_size=12))
def test_parents_come_first(above: list[list[int]]) -> None:
    parents = {
        f"n{at}": sorted({f"n{one % at}" for one in row}) if at else []
        for at, row in enumerate(above)
    }
    last = f"n{len(above) - 1}"
    order = [*ancestors(parents, last), last]
    for child in order:
        assert all(order.index(one) < order.index(child) for one in parents[child])


def test_errors() -> None:
    with pytest.raises(UnknownName):
        ancestors(FAMILY, "e")
    with pytest.raises(UsageError, match="circle"):
        tree({"a": ["b"], "b": ["a"]}, "a")


def test_importing_it_does_not_load_networkx() -> None:
    code = "import sys, agentloop.networks; sys.exit('networkx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_descendants_and_what_hangs_together() -> None:
    assert descendants(FAMILY, ["b"]) == ["b", "d"]
    assert descendants(FAMILY, ["gone", "other"]) == ["c", "d", "gone", "other"]
    assert descendants({"a": ["b"], "b": ["a"]}, ["a"]) == ["a", "b"]
    parts = components(["x", "a", "b", "c"], [("b", "a"), ("c", "b")])
    assert parts == [["a", "b", "c"], ["x"]]
