"""The population: choices by score, JSON round trip, nothing forgotten."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import UsageError
from agentloop.evolution.population import Candidate, Population
from agentloop.records import Instruction
from agentloop.trajectories.codec import decode, encode

TASKS = ("t0", "t1", "t2")


def population(*rows: tuple[float, ...]) -> Population:
    made = Population()
    for at, row in enumerate(rows):
        scores = dict(zip(TASKS, row, strict=False))
        made = made.add(Candidate(id=f"i{at}", instruction=Instruction(text=f"text {at}")))
        made = made.score(f"i{at}", scores).mark(f"i{at}", "active")
    return made


ROWS = st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=1, max_size=6)


@given(ROWS)
def test_round_trip_best_front_and_prune(rows: list[tuple[float, ...]]) -> None:
    made = population(*rows)
    assert decode(Population, encode(made)) == made
    best = made.best()
    assert best.mean() == max(one.mean() for one in made.candidates)
    for task in TASKS:
        top = max(one.scores[task] for one in made.candidates)
        assert any(one.scores[task] == top for one in made.front())
    kept = made.prune(2)
    assert kept.best() == best
    assert len(kept.active()) == min(2, len(rows))
    assert len(kept.candidates) == len(rows)
    assert all(one.reason for one in kept.candidates if one.status == "pruned")


def test_front_holds_specialists_and_not_the_dominated() -> None:
    made = population((1.0, 0.0, 0.0), (0.0, 0.6, 0.6), (0.5, 0.5, 0.5))
    assert [one.id for one in made.front()] == ["i0", "i1"]
    drawn = {made.draw(random.Random(seed), temperature=0.5).id for seed in range(50)}
    assert drawn == {"i0", "i1"}


def test_softmax_draws_in_proportion_to_exp_of_the_mean() -> None:
    made = population((0.0,), (0.5,))
    rng = random.Random(0)
    drawn = Counter(made.draw(rng, choice="softmax", temperature=0.5).id for _ in range(4000))
    assert drawn["i1"] / drawn["i0"] == pytest.approx(2.718, rel=0.12)
    cold = {made.draw(rng, choice="softmax", temperature=0.001).id for _ in range(50)}
    assert cold == {"i1"}


def test_a_tournament_of_two_prefers_the_better() -> None:
    made = population((0.0,), (1.0,))
    rng = random.Random(0)
    drawn = Counter(made.draw(rng, choice="tournament").id for _ in range(1000))
    assert drawn["i1"] / 1000 == pytest.approx(0.75, abs=0.05)


def test_of_equals_the_shorter_text_is_best() -> None:
    made = population((0.5,))
    made = made.add(Candidate(id="s", instruction=Instruction(text="t"), status="active"))
    assert made.score("s", {"t0": 0.5}).best().id == "s"


def test_what_cannot_be() -> None:
    made = population((0.5,))
    with pytest.raises(UsageError, match="already"):
        made.add(made["i0"])
    for value in (1.1, -0.1, float("nan")):
        with pytest.raises(UsageError, match=r"\[0, 1\]"):
            made.score("i0", {"t0": value})
    with pytest.raises(UsageError, match="active"):
        Population().best()
