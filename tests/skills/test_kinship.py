"""Skills among each other: what says the same is found, two become one with both as parents."""

from __future__ import annotations

from dataclasses import replace

import pytest
from malicious_skills import skill
from skill_world import KINDS, Llama, successes

from agentloop.errors import UsageError
from agentloop.records import Skill
from agentloop.skills.document import parse
from agentloop.skills.induce import induce
from agentloop.skills.kinship import duplicates, merge
from agentloop.trajectories.examples import code_blocks


def made(kind: str, seed: int) -> Skill:
    found = induce(successes(kind, 4, seed))
    assert found is not None
    return found


def test_what_was_learned_apart_of_one_kind_is_one_cluster() -> None:
    library = {f"{kind}-{seed}": made(kind, seed) for kind in KINDS for seed in range(3)}
    found = duplicates(library, Llama())
    assert sorted(found) == sorted([f"{kind}-{seed}" for seed in range(3)] for kind in KINDS)
    assert duplicates({"a": made("gcd", 0), "b": made("lcm", 0)}, Llama()) == []
    assert duplicates({}, Llama()) == []


def test_one_of_two_has_the_examples_and_files_of_both() -> None:
    one = replace(made("gcd", 0), files={"scripts/a.py": "A = 1\n"})
    other = replace(made("gcd", 1), files={"scripts/a.py": "A = 1\n", "references/b.md": "b"})
    joined = merge(("1", one), ("2", other))
    assert (joined.name, joined.description) == (one.name, one.description)
    assert joined.parents == ("1", "2") and joined.evidence == (*one.evidence, *other.evidence)
    assert joined.files == other.files
    blocks = [code_blocks(parse(each.document).body) for each in (one, other, joined)]
    assert set(blocks[2]) == {*blocks[0], *blocks[1]}
    assert parse(joined.document).metadata["agentloop.version"] == "2"
    same = merge(("1", one), ("2", one))
    assert parse(same.document).body == parse(one.document).body


def test_files_that_differ_are_a_person_s_to_join() -> None:
    with pytest.raises(UsageError, match=r"`scripts/a\.py` differs"):
        merge(("1", skill({"scripts/a.py": "A = 1"})), ("2", skill({"scripts/a.py": "A = 2"})))
