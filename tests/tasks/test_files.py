"""JSONL tasks: what is read, what is refused, which split and order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentloop.errors import UsageError
from agentloop.ports import Tasks
from agentloop.tasks.files import Jsonl
from agentloop.tasks.split import interleave, is_heldout


def _write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def test_a_row_becomes_a_task(tmp_path: Path) -> None:
    row = {
        "prompt": "2+2?",
        "expected": 4,
        "id": "a",
        "family": "sums",
        "split": "train",
        "hint": [1],
    }
    path = _write(tmp_path / "t.jsonl", row)
    (task,) = Jsonl(path=path).draw(5, split="train", seed=0)
    assert (task.id, task.prompt, task.expected, task.family) == ("a", "2+2?", 4, "sums")
    assert task.data == {"hint": [1]}
    assert isinstance(Jsonl(path=path), Tasks)


def test_an_id_is_made_from_the_prompt_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '\ufeff\n{"prompt": "a", "split": "train"}\n\n{"prompt": "b", "split": "train"}', "utf-8"
    )
    tasks = Jsonl(path=str(path)).draw(9, split="train", seed=0)
    assert sorted(task.prompt for task in tasks) == ["a", "b"]
    assert len({task.id for task in tasks}) == 2
    assert all(task.family == "default" for task in tasks)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 of `.*` is not valid JSON"),
        ("[1]", "line 2 of `.*` is not a JSON object"),
        ('{"expected": 1}', 'line 2 of `.*` has no "prompt"'),
        ('{"prompt": ""}', 'line 2 of `.*` has no "prompt"'),
        ('{"prompt": 3}', 'line 2 of `.*` has no "prompt"'),
        ('{"prompt": "x", "id": 3}', 'line 2 .* "id" that is not a text'),
        ('{"prompt": "x", "split": "test"}', 'line 2 .* split "test"'),
        ('{"prompt": "x", "expected": NaN}', "line 2 .*NaN is not a JSON number"),
        ('{"prompt": "x", "id": "a"}', "line 2 .* has the id `a` of line 1 again"),
        ('{"prompt": "\\ud800"}', "line 2 .* is not valid JSON"),
        ("[" * 100_000, "line 2 .* is not valid JSON"),
        ('{"prompt": "x", "expected": ' + "9" * 5000 + "}", "line 2 .* is not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "first", "id": "a"}\n' + line + "\n", "utf-8")
    with pytest.raises(UsageError, match=says):
        Jsonl(path=str(path)).draw(1, split="train", seed=0)


def test_a_missing_or_binary_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Jsonl(path=str(tmp_path / "no.jsonl")).draw(1, split="train", seed=0)
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        Jsonl(path=str(tmp_path / "b.jsonl")).draw(1, split="train", seed=0)
    with pytest.raises(UsageError, match="cannot be read"):
        Jsonl(path=str(tmp_path)).draw(1, split="train", seed=0)


def test_an_empty_split_says_what_to_do(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.jsonl", {"prompt": "a", "split": "train"})
    with pytest.raises(UsageError, match=r'has no heldout task among its 1; .*"split": "heldout"'):
        Jsonl(path=path).draw(1, split="heldout", seed=0)


def test_families_come_in_turn_and_none_twice(tmp_path: Path) -> None:
    rows = [{"prompt": f"{f}{i}", "family": f, "split": "train"} for f in "abc" for i in range(4)]
    path = _write(tmp_path / "t.jsonl", *rows, {"prompt": "d", "family": "d", "split": "train"})
    tasks = Jsonl(path=path).draw(100, split="train", seed=3)
    assert len(tasks) == len({task.id for task in tasks}) == 13
    assert [task.family for task in tasks[:7]] == ["a", "b", "c", "d", "a", "b", "c"]
    assert tasks[:5] == Jsonl(path=path).draw(5, split="train", seed=3)
    assert [t.id for t in tasks] != [
        t.id for t in Jsonl(path=path).draw(100, split="train", seed=4)
    ]


@settings(max_examples=40, deadline=None)
@given(st.sets(st.text(min_size=1).filter(str.strip), min_size=2, max_size=40), st.integers())
def test_splits_are_a_partition_whatever_the_seed_and_order(
    tmp_path_factory: pytest.TempPathFactory, prompts: set[str], seed: int
) -> None:
    prompts = {p for p in prompts if p.encode("utf-8", "ignore").decode() == p}
    base = tmp_path_factory.mktemp("rows")
    path = _write(base / "t.jsonl", *({"prompt": p} for p in prompts))
    back = _write(base / "u.jsonl", *({"prompt": p} for p in sorted(prompts, reverse=True)))
    drawn: dict[str, list[str]] = {"train": [], "heldout": []}
    for split in drawn:
        try:
            drawn[split] = [t.prompt for t in Jsonl(path=path).draw(99, split=split, seed=seed)]  # type: ignore[arg-type]
        except UsageError:
            continue
        again = Jsonl(path=back).draw(99, split=split, seed=seed)  # type: ignore[arg-type]
        assert [t.prompt for t in again] == drawn[split]
    assert sorted(drawn["train"] + drawn["heldout"]) == sorted(prompts)


def test_the_heldout_share_is_what_it_says() -> None:
    share = sum(is_heldout(str(i), 0.3) for i in range(4000)) / 4000
    assert abs(share - 0.3) < 0.03
    assert not any(is_heldout(str(i), 0.0) for i in range(100))
    assert all(is_heldout(str(i), 1.0) for i in range(100))


@given(st.lists(st.lists(st.integers())))
def test_interleave_keeps_everything_and_each_order(groups: list[list[int]]) -> None:
    tagged = [[(at, item) for item in group] for at, group in enumerate(groups)]
    mixed = list(interleave(tagged))
    for at, group in enumerate(tagged):
        assert [pair for pair in mixed if pair[0] == at] == group
