"""The questions by which finding skills is measured: each worded as its family promises."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from functools import cache

import pytest

from agentloop.skills.search import CONSTANT, fuse
from benchmarks.skill_search import FAMILIES, convex, read, reciprocal

_COMMON = """
a after all am an and any anything are as at be been before between both by can come could did
do does down each else first for four from get give given go got had has have having he her here
him how i if in into is it its just keep kept know known last let like ll look make many may me
more must my need needs new next no not nothing now of off on once one ones only or our out over
own per please put s same say says see shall she should show so some somebody someone t take
tell than that the their them then there these they thing this those three through to two under
up us use want wants was way we were what when where which while who whom whose why will with
without would you your
"""


@cache
def stems(text: str) -> frozenset[str]:
    """The words of a text but those that all texts have, as the search by words cuts them."""
    words = re.findall(r"\w+", text.lower().replace("_", " "))
    db = sqlite3.connect(":memory:")
    try:
        db.execute("CREATE VIRTUAL TABLE t USING fts5(x, tokenize = 'porter unicode61')")
        db.execute("CREATE VIRTUAL TABLE v USING fts5vocab(t, 'row')")
        kept = " ".join(one for one in words if len(one) > 1 and one not in _COMMON.split())
        db.execute("INSERT INTO t VALUES (?)", (kept,))
        return frozenset(term for (term,) in db.execute("SELECT term FROM v"))
    finally:
        db.close()


@pytest.mark.parametrize("part", ["tuning", "reported"])
def test_a_question_shares_with_its_skill_what_its_family_says(part: str) -> None:
    skills, asked = read(part)
    texts = {name: stems(f"{name} {one.description}") for name, one in skills}
    owners = Counter(word for words in texts.values() for word in words)
    for one in asked:
        shared = stems(one.text) & texts[one.skill]
        if one.family == "identifier":  # a stem may be cut like another's: ESR and ESRS
            assert 1 <= len(shared) <= 2 and min(owners[word] for word in shared) <= 2, one
        else:
            assert bool(shared) == (one.family == "mixed"), (one, shared)


def test_the_parts_have_nothing_in_common_and_enough_is_reported() -> None:
    (ours, first), (others, second) = read("tuning"), read("reported")
    assert not {name for name, _ in ours} & {name for name, _ in others}
    assert not {one.text for one in first} & {one.text for one in second}
    assert len({one.text for one in second}) == 240 == 3 * len(others)
    assert Counter(one.family for one in second) == dict.fromkeys(FAMILIES, 80)


def test_the_ways_to_join() -> None:
    words, meaning = [("a", -9.0), ("b", -8.0)], [("b", 0.9), ("c", 0.8), ("a", 0.1)]
    shipped = [name for name, _ in fuse([["a", "b"], ["b", "c", "a"]])]
    assert reciprocal(CONSTANT)(words, meaning) == shipped == ["b", "a", "c"]
    assert reciprocal(5, 0.9)(words, meaning)[0] == "a"
    assert convex(0.5)(words, meaning) == ["a", "b", "c"]  # b is the lowest of its ranking: 0
    assert convex(0.5, (0.0, -1.0))(words, meaning) == ["b", "a", "c"]
    assert convex(0.5)([], meaning) == ["b", "c", "a"]
