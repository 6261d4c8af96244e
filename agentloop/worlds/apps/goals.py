"""What the state should be in the end, and where it is not: the check that a task is graded by.

Goes in: the tables at the start and at the end, and a goal, all JSON. Comes out: the differences in
words, none when the task is done. The decision worth knowing: a goal is the *whole* difference from
the start, so anything else that was changed, added or removed (collateral damage) is a difference
too. New records are compared without their ids, which depend on the way.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from agentloop.records import Json, record
from agentloop.worlds.apps.calls import Record, Tables

COUNTERS = "made"
"""The table that counts what was added; the way decides it and not the goal."""


@record
class Goal:
    """The difference from the start. Keys of `change` and `remove` are `table/id`."""

    change: dict[str, dict[str, Json]]
    """New values of fields of records that were there."""
    add: dict[str, list[Json]]
    """By table, the records that are new; a file's has its `path` in it."""
    remove: tuple[str, ...] = ()
    answer: str | None = None
    """What `finish` is to be given; `None` when it does not matter."""

    def as_json(self) -> dict[str, Json]:
        """For `Task.data`."""
        return {
            "change": {key: dict(fields) for key, fields in self.change.items()},
            "add": {table: list(records) for table, records in self.add.items()},
            "remove": list(self.remove), "answer": self.answer,
        }  # fmt: skip


def differences(start: Tables, end: Tables, goal: Any, answer: str | None) -> list[str]:
    """What differs between the end and what `goal` (as JSON) wants of `start`."""
    problems: list[str] = []
    for table in start:
        if table == COUNTERS:
            continue
        wanted = {
            key: {**one, **goal["change"].get(f"{table}/{key}", {})}
            for key, one in start[table].items()
            if f"{table}/{key}" not in goal["remove"]
        }
        problems += _kept(table, wanted, end[table])
        added = {key: one for key, one in end[table].items() if key not in start[table]}
        problems += _added(table, goal["add"].get(table, []), added)
        problems += [
            f"{table}/{key} is still there" for key in end[table]
            if key in start[table] and key not in wanted
        ]  # fmt: skip
    if goal["answer"] is not None and (answer or "").strip() != goal["answer"]:
        problems.append(f"the answer is `{answer}` and not `{goal['answer']}`")
    return problems


def changed(before: Tables, after: Tables) -> set[str]:
    """`table/id` of every record that was changed, added or removed."""
    return {
        f"{table}/{key}"
        for table in after
        if table != COUNTERS
        for key in before[table].keys() | after[table].keys()
        if before[table].get(key) != after[table].get(key)
    }


def _kept(table: str, wanted: dict[str, Record], end: dict[str, Record]) -> Iterable[str]:
    for key, want in wanted.items():
        if key not in end:
            yield f"{table}/{key} is gone"
        elif end[key] != want:
            names = sorted(
                k for k in want.keys() | end[key].keys() if want.get(k) != end[key].get(k)
            )
            yield f"{table}/{key}: {', '.join(names)} should be as in {json.dumps(want)}"


def _added(table: str, wanted: list[Any], added: dict[str, Record]) -> Iterable[str]:
    def text(new: Any) -> str:
        return json.dumps(new, sort_keys=True)

    if table == "files":
        added = {key: {**one, "path": key} for key, one in added.items()}
    have, want = Counter(map(text, added.values())), Counter(map(text, wanted))
    yield from (f"{table} lacks {one}" for one in (want - have).elements())
    yield from (f"{table} has a needless {one}" for one in (have - want).elements())
