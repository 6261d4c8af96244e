"""The right skill for an unseen task, none for a task that none was made for."""

from __future__ import annotations

import random

import pytest
from skill_world import KINDS, Llama, question, successes

from agentloop.records import Skill
from agentloop.skills.induce import induce
from agentloop.skills.retrieve import Retriever

UNRELATED = [
    "Sort these words in ascending order: stone, water, ship",
    "Write a poem about the sea.",
    "What is the capital of France?",
    "Reverse the word: hello",
    "Evaluate the polynomial x**2 + 3*x - 4 at x = 7.",
    "Convert the hexadecimal number ff to base 2.",
    "Translate the sentence into German: I like trains.",
    "Find the prime factorization of 360.",
    "Book a table for two at eight and tell Anna.",
]


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    groups = {kind: successes(kind, 5) for kind in KINDS}
    skills: list[tuple[str, Skill]] = []
    for kind, group in groups.items():
        others = [one for name, rest in groups.items() if name != kind for one in rest]
        skill = induce(group, others=others)
        assert skill is not None
        skills.append((kind, skill))
    return Retriever(skills, Llama())


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_skill_for_every_unseen_task(retriever: Retriever, kind: str) -> None:
    rng = random.Random(f"unseen {kind}")
    for _ in range(100):
        prompt = question(kind, rng)[0]
        assert [found[0] for found in retriever.pick(prompt)] == [kind], prompt


@pytest.mark.parametrize("text", [*UNRELATED, "", "   ", "7"])
def test_none_for_an_unrelated_text(retriever: Retriever, text: str) -> None:
    assert retriever.pick(text) == []


def test_k_and_floor_and_order(retriever: Retriever) -> None:
    prompt = question("gcd", random.Random(5))[0]
    found = retriever.pick(prompt, k=3, floor=-1.0)
    assert len(found) == 3
    assert found[0][0] == "gcd"
    near = [similarity for _, _, similarity in found]
    assert near == sorted(near, reverse=True)
    assert Retriever([], Llama()).pick(prompt) == []
