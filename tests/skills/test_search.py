"""Words and meaning joined: either finds what the other misses, and no source has it all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from malicious_skills import skill
from skill_world import KINDS, Llama, question, successes

from agentloop.errors import UsageError
from agentloop.records import Skill
from agentloop.skills.document import Document, to_skill
from agentloop.skills.induce import induce
from agentloop.skills.search import Finder, Words, fuse


def made(name: str, description: str) -> Skill:
    return to_skill(Document(name=name, description=description))


LIBRARY = [
    ("1", made("tax-xk17", "Fill in form XK17.")),
    ("2", made("sea-poems", "Compose verses about the ocean.")),
    ("3", made("tables", "Draws tables of numbers.")),
    ("4", made("trains", "Buy a railway ticket.")),
]


def no_one(text: str, k: int) -> list[tuple[str, float]]:
    return []


def test_a_rare_word_and_a_paraphrase() -> None:
    finder = Finder(LIBRARY, Llama())
    assert finder.pick("what about xk17?", 1)[0][0] == "1"
    assert finder.pick("write some rhymes on the sea", 1)[0][0] == "2"
    assert finder.words.near("a poem on waves", 3)[0][0] == "2"  # by its stem
    assert finder.pick("  ") == []
    finder.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_unseen_task_of_each_kind(kind: str) -> None:
    import random

    skills = []
    for one in KINDS:
        skill_ = induce(successes(one, 4))
        assert skill_ is not None
        skills.append((one, skill_))
    finder = Finder(skills, Llama())
    rng = random.Random(99)
    assert [finder.pick(question(kind, rng)[0], 1)[0][0] for _ in range(5)] == [kind] * 5


def test_functions_are_found_by_name() -> None:
    code = 'def moving_average(x: list[float]) -> float:\n    """Smooths."""\n    return x[0]\n'
    finder = Finder([*LIBRARY, ("5", skill({"scripts/x.py": code}))], near=no_one)
    assert finder.pick("call moving_average on it", 1)[0][0] == "5"


def test_fusion_is_the_sum_of_reciprocal_places() -> None:
    assert fuse([["a", "b"], ["b"]]) == [("b", 1 / 7 + 1 / 6), ("a", 1 / 6)]
    assert fuse([["b"], ["a"]]) == [("a", 1 / 6), ("b", 1 / 6)]


def test_a_source_has_no_more_than_its_share() -> None:
    skills = [(str(at), made(f"sea-{at}", "Poems of the sea.")) for at in range(10)]
    sources = {str(at): "file/evil" for at in range(9)}
    finder = Finder(skills, Llama(), sources=sources)
    found = [name for name, _, _ in finder.pick("poems of the sea", 4, share=0.5)]
    assert len([name for name in found if name in sources]) == 2 and "9" in found
    assert len(finder.pick("poems of the sea", 4)) == 4


def test_what_is_not_in_the_library_is_not_found() -> None:
    finder = Finder(LIBRARY, near=lambda text, k: [("quarantined", 0.1), ("3", 0.2)])
    assert [one[0] for one in finder.pick("anything", 3)] == ["3"]
    with pytest.raises(UsageError, match="embedder"):
        Finder(LIBRARY)


@given(st.text(max_size=80))
def test_any_text_is_a_query(text: str) -> None:
    assert len(WORDS.near(text, 3)) <= 3


WORDS = Words(LIBRARY)
