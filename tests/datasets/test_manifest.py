"""A frozen dataset appears whole, is found again by content, and is never read when damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentloop.datasets.manifest import dataset_id, freeze, load_rows, rows_path
from agentloop.errors import StoreError, UsageError
from agentloop.files import new_directory
from agentloop.records import Message, Row


def row(at: int) -> Row:
    return Row(
        episode=f"ep-{at % 2}",
        prompt=(Message(role="user", content=f"line\nbreak {at} \u2028"),),
        segments=((at, at + 1), (7,), (8, 9)),
        sampled=(True, False, True),
        logprobs=((-0.5, -0.25), (), (-1.0, -2.0)),
    )


def test_rows_come_back_exactly(tmp_path: Path) -> None:
    rows = [row(at) for at in range(5)]
    dataset = freeze(rows, {"cap": 2}, tmp_path)
    assert (dataset.rows, dataset.tokens, dataset.episodes) == (5, 25, ("ep-0", "ep-1"))
    assert sorted(load_rows(rows_path(tmp_path, dataset)), key=repr) == sorted(rows, key=repr)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [dataset_id(dataset)]


def test_order_does_not_matter_and_the_spec_does(tmp_path: Path) -> None:
    rows = [row(at) for at in range(5)]
    first = freeze(rows, {}, tmp_path / "a")
    assert freeze(rows[::-1], {}, tmp_path / "a") == first
    files = [rows_path(tmp_path / at, freeze(rows, {}, tmp_path / at)) for at in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert dataset_id(freeze(rows, {"other": 1}, tmp_path / "a")) != dataset_id(first)


def test_damage_is_found(tmp_path: Path) -> None:
    dataset = freeze([row(1)], {}, tmp_path)
    path = rows_path(tmp_path, dataset)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"7", b"6", 1))
    for read in (lambda: load_rows(path), lambda: freeze([row(1)], {}, tmp_path)):
        with pytest.raises(StoreError, match="was changed"):
            read()
    path.write_bytes(whole)
    (path.parent / "extra").write_text("x")
    with pytest.raises(StoreError, match="not part of"):
        load_rows(path)
    (path.parent / "extra").unlink()
    (path.parent / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match="not a manifest"):
        load_rows(path)
    with pytest.raises(UsageError, match="does not exist"):
        load_rows(tmp_path / "none" / "rows.jsonl")


def test_nothing_to_freeze_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no rows"):
        freeze([], {}, tmp_path)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        freeze([row(1)], {}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_never_replaced(tmp_path: Path) -> None:
    with new_directory(tmp_path / "d") as draft:
        (draft / "f").write_text("first")
    with pytest.raises(FileExistsError), new_directory(tmp_path / "d") as draft:
        (draft / "f").write_text("second")
    assert (tmp_path / "d" / "f").read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]
