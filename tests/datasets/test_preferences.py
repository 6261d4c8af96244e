"""Pairs are of one group, lists have both kinds, and a row is the conversation that answered."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from dataset_fixtures import episode, node, replies
from hypothesis import given
from hypothesis import strategies as st

from agentloop.datasets.groups import group_of
from agentloop.datasets.preferences import listwise_rows, preference_rows, unpaired_rows
from agentloop.records import Episode, Message, Row, Sampling
from agentloop.trajectories.redact import Redactor


def pairs(rows: list[Row]) -> list[tuple[str, str]]:
    """(good, bad) of each pair, whose two rows stand together."""
    found = []
    for good, bad in zip(rows[::2], rows[1::2], strict=True):
        assert (good.label, bad.label) == (True, False)
        assert good.pair == bad.pair != ""
        assert good.group == bad.group
        found.append((good.episode, bad.episode))
    assert len({row.pair for row in rows}) == len(found)
    return found


MANY = [
    episode("a1", 1.0), episode("a2", 0.9), episode("a3", 0.1), episode("a4", 0.0),
    episode("b1", 1.0, task="b"), episode("b2", 1.0, task="b"),
    episode("c1", 0.0, task="c"),
]  # fmt: skip


def test_every_success_meets_every_failure_of_its_group() -> None:
    assert sorted(pairs(preference_rows(MANY))) == [
        ("a1", "a3"), ("a1", "a4"), ("a2", "a3"), ("a2", "a4"),
    ]  # fmt: skip


def test_a_conversation_sampled_in_two_ways_is_judged_without_log_probs() -> None:
    turns = replies("call", "answer")
    both = replace(
        turns, nodes=(*turns.nodes[:3], replace(turns.nodes[3], sampling=Sampling(temperature=1.0)))
    )
    plain, mixed = unpaired_rows([episode("a", 1.0, turns), episode("b", 1.0, both)])
    assert plain.logprobs
    assert (mixed.logprobs, mixed.sampling) == ((), None)
    assert mixed.segments == plain.segments


def test_one_pair_is_the_best_and_the_worst() -> None:
    assert pairs(preference_rows(MANY, mode="one")) == [("a1", "a4")]


def test_a_margin_pairs_rewards_whatever_counts_as_success() -> None:
    assert sorted(pairs(preference_rows(MANY, margin=0.85))) == [
        ("a1", "a3"), ("a1", "a4"), ("a2", "a4"),
    ]  # fmt: skip
    assert pairs(preference_rows(MANY, margin=0.95)) == [("a1", "a4")]
    assert ("a1", "a2") in pairs(preference_rows(MANY, margin=0.05))


@given(st.lists(st.tuples(st.sampled_from("tuv"), st.sampled_from([0.0, 0.4, 0.9])), max_size=12),
       st.randoms(use_true_random=False))  # fmt: skip
def test_pairs_do_not_depend_on_order_and_groups_without_both_have_none(
    drawn: list[tuple[str, float]], chance: random.Random
) -> None:
    many = [episode(f"e{at}", value, task=task) for at, (task, value) in enumerate(drawn)]
    mixed = list(many)
    chance.shuffle(mixed)
    found = pairs(preference_rows(many))
    assert sorted(pairs(preference_rows(mixed))) == sorted(found)
    by = {one.id: one for one in many}
    want = [
        (g.id, b.id) for g in many for b in many
        if g.success and not b.success and g.task == b.task
    ]  # fmt: skip
    assert sorted(found) == sorted(want)
    lists = listwise_rows(many)
    assert {row.episode for row in lists} == {name for pair in want for name in pair}
    assert all(row.label is by[row.episode].success for row in lists)
    assert sorted(row.episode for row in unpaired_rows(mixed)) == sorted(by)


def test_rows_are_exact_or_bare() -> None:
    one = episode("a", 1.0, replies("call", "answer", policy="p1"))
    (exact,) = unpaired_rows([one])
    assert (exact.prompt, exact.label, exact.reward) == ((), True, 1.0)
    assert exact.segments == ((1, 2, 3), (10, 11), (20, 21), (30, 31))
    assert (exact.group, exact.policy) == (group_of(one), "p1")
    (bare,) = unpaired_rows([one], system="Be brief.")
    assert bare.prompt == (
        Message(role="system", content="Be brief."),
        Message(role="user", content="the question"),
    )
    assert bare.segments == ((10, 11), (20, 21), (30, 31))
    assert bare.group == group_of(one)


@pytest.mark.parametrize("system", [None, ""])
def test_of_a_fork_the_last_conversation_counts_as_a_whole(system: str | None) -> None:
    turns = replies("call", "answer")
    forked = replace(
        turns, nodes=(*turns.nodes, node(1, "tool", (50,)), node(4, "assistant", (60,)))
    )
    (row,) = unpaired_rows([episode("a", 1.0, forked)], system=system)
    learned = [ids for ids, flag in zip(row.segments, row.sampled, strict=True) if flag]
    assert learned == [(10, 11), (60,)]


def test_api_trajectories_have_exact_rows_only_with_their_ids() -> None:
    turns = replies("answer")
    no_logprobs = replace(turns, nodes=(turns.nodes[0], replace(turns.nodes[1], logprobs=None)))
    (row,) = unpaired_rows([episode("a", 1.0, no_logprobs)])
    assert row.logprobs == ()
    no_prompt = replace(turns, nodes=(replace(turns.nodes[0], token_ids=()), turns.nodes[1]))
    one = episode("a", 1.0, no_prompt)
    assert unpaired_rows([one]) == []
    assert len(unpaired_rows([one], system="")) == 1
    assert unpaired_rows([episode("a", 1.0, replace(turns, trainable=False))]) == []


def test_a_list_is_cut_near_half_and_half() -> None:
    def cut(right: int, wrong: int, most: int) -> tuple[int, int]:
        many: list[Episode] = [episode(f"r{at}", 1.0) for at in range(right)]
        many += [episode(f"w{at}", 0.0) for at in range(wrong)]
        labels = [row.label for row in listwise_rows(many, most=most)]
        return labels.count(True), labels.count(False)

    assert cut(8, 8, 6) == (3, 3)
    assert cut(8, 1, 6) == (5, 1)
    assert cut(1, 8, 6) == (1, 5)
    assert cut(2, 2, 6) == (2, 2)
    assert cut(0, 8, 6) == cut(8, 0, 6) == (0, 0)
    many = [episode(f"e{at}", float(at % 2)) for at in range(8)]
    assert listwise_rows(many[::-1], most=3) == listwise_rows(many, most=3)


def test_a_secret_makes_no_row() -> None:
    held = episode("a", 1.0, replies("the word is plain-words-only"))
    assert unpaired_rows([held], redact=Redactor({"THE_PASSWORD": "plain-words-only"})) == []
