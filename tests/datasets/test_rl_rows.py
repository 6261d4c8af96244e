"""RL rows hold every token the engine saw, once to learn, with what it was worth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from dataset_fixtures import episode, node, replies
from hypothesis import given
from hypothesis import strategies as st

from agentloop.datasets.credit import Credits, GroupCredit
from agentloop.datasets.filters import Chosen
from agentloop.datasets.groups import group_of, samples
from agentloop.datasets.makers import RLRows
from agentloop.datasets.rl_rows import rl_rows, unusable_for_ratios, why_no_ratio
from agentloop.errors import UsageError
from agentloop.records import Episode, Row, Sampling, Trajectory
from agentloop.trajectories import codec
from agentloop.trajectories.branches import ratio_branches


def paid(*episodes: Episode) -> Credits:
    """A worth of its own for each sample."""
    return {
        (one.id, number, at): number + at / 100 for one in episodes for number, at in samples(one)
    }


def flat(row: Row) -> tuple[int, ...]:
    return tuple(token for segment in row.segments for token in segment)


def test_a_row_is_the_whole_branch_with_its_log_probs_and_worth() -> None:
    turns = replies("call", "answer", policy="p1")
    how = Sampling(temperature=0.7, seed=3)
    drawn = tuple(replace(each, sampling=how) if each.sampled else each for each in turns.nodes)
    one = episode("a", 0.75, replace(turns, nodes=drawn))
    (row,) = rl_rows([one], paid(one), shares={"a": 0.25})
    assert row == Row(
        episode="a",
        prompt=(),
        segments=((1, 2, 3), (10, 11), (20, 21), (30, 31)),
        sampled=(False, True, False, True),
        logprobs=((), (-0.01, -0.011), (), (-0.03, -0.031)),
        advantages=(0.0, 0.01, 0.0, 0.03),
        group=group_of(one),
        policy="p1",
        sampling=how,
        reward=0.75,
        share=0.25,
        label=True,
    )
    assert codec.decode(Row, codec.encode(row)) == row


def test_attempts_are_told_by_segment() -> None:
    turns = replies("x")
    both = replace(
        turns,
        nodes=(*turns.nodes, node(1, "user", (70,), "Try again."), node(2, "assistant", (80,))),
    )
    one = episode("a", 1.0, both)
    (row,) = rl_rows([one], paid(one))
    assert row.attempts == (1, 1, 2, 2)
    assert rl_rows([episode("b")], paid(episode("b")))[0].attempts == ()
    last = len(both.nodes)
    more = (node(1, "user", (90,), "Once more."), node(last, "assistant", (91,)))
    forked = episode("c", 1.0, replace(both, nodes=(*both.nodes, *more)))
    _, second = rl_rows([forked], paid(forked))
    assert second.segments == ((1, 2, 3, 10, 11), (90,), (91,))
    assert second.attempts == (1, 2, 2)


def test_a_fork_repeats_tokens_as_context_and_learns_each_sample_once() -> None:
    turns = replies("call", "answer")
    forked = replace(
        turns, nodes=(*turns.nodes, node(1, "tool", (50,)), node(4, "assistant", (60,)))
    )
    one = episode("a", 1.0, forked)
    first, second = rl_rows([one], paid(one))
    assert flat(first) == (1, 2, 3, 10, 11, 20, 21, 30, 31)
    assert second.segments == ((1, 2, 3, 10, 11, 50), (60,))
    assert (second.sampled, second.advantages) == ((False, True), (0.0, 0.05))


def test_what_follows_the_last_sample_is_dropped() -> None:
    turns = replies("answer")
    longer = replace(turns, nodes=(*turns.nodes, node(1, "tool", (40, 41))))
    one, two = episode("a", 1.0, turns), episode("a", 1.0, longer)
    assert rl_rows([one], paid(one)) == rl_rows([two], paid(two))


def test_no_ratio_no_row() -> None:
    good = replies("call", "answer")
    nodes = good.nodes
    cases = {
        "no_logprobs": (*nodes[:3], replace(nodes[3], logprobs=None)),
        "misaligned_logprobs": (*nodes[:3], replace(nodes[3], logprobs=(-1.0,))),
        "no_token_ids": (*nodes[:2], replace(nodes[2], token_ids=()), nodes[3]),
        "no_prompt_ids": (replace(nodes[0], token_ids=()), *nodes[1:]),
    }
    bad = [episode(name, 1.0, Trajectory(nodes=found)) for name, found in cases.items()]
    assert rl_rows(bad, paid(*bad)) == []
    assert unusable_for_ratios([*bad, episode("good")]) == dict.fromkeys(cases, 1)
    assert why_no_ratio(good) is None
    empty = Trajectory(nodes=(*nodes[:3], replace(nodes[3], logprobs=())))
    assert why_no_ratio(empty) == "misaligned_logprobs"
    alone = Trajectory(nodes=(replace(nodes[1], parent=None),))
    assert why_no_ratio(alone) == "no_prompt_ids"


@pytest.mark.parametrize(
    "other",
    [
        {"policy": "p2"},
        {"sampling": Sampling(temperature=0.7)},
        {"sampling": Sampling(temperature=1.0, top_p=0.9)},
        {"sampling": Sampling(temperature=1.0, top_k=5)},
        {"sampling": None},
    ],
)
def test_a_branch_sampled_in_two_ways_gives_no_ratio(other: dict[str, Any]) -> None:
    how = Sampling(temperature=1.0, seed=1)
    turns = replies("call", "answer", policy="p1")
    nodes = tuple(replace(each, sampling=how) for each in turns.nodes)
    two = Trajectory(nodes=(*nodes[:3], replace(nodes[3], **other)))
    assert why_no_ratio(two) == "several_settings"
    one = episode("a", 1.0, two)
    made = RLRows().make(Chosen(episodes=(one,)), credits=paid(one))
    assert (made.rows, made.left_out) == ((), {"several_settings": 1})
    again = replace(how, seed=2, max_tokens=9, stop=("x",))  # probabilities are the same
    assert why_no_ratio(Trajectory(nodes=(*nodes[:3], replace(nodes[3], sampling=again)))) is None


def test_branches_sampled_in_different_ways_are_rows_of_their_own() -> None:
    hot, cold = Sampling(temperature=1.0), Sampling(temperature=0.5)
    first, second = node(0, "assistant", (10,)), node(1, "user", (20,))
    nodes = (
        node(None, "user", (1,)),
        replace(first, sampling=hot),
        second,
        replace(node(2, "assistant", (30,)), sampling=hot),
        node(1, "tool", (40,)),
        replace(node(4, "assistant", (50,)), sampling=cold),
    )
    one = episode("a", 1.0, Trajectory(nodes=nodes))
    rows = rl_rows([one], paid(one))
    assert [row.sampling for row in rows] == [hot, cold]
    assert rows[1].segments == ((1, 10, 40), (50,))  # what was sampled hot is context


def test_a_sample_without_credit_is_an_error() -> None:
    with pytest.raises(UsageError, match="`b` was given no credit"):
        rl_rows([episode("a"), episode("b")], GroupCredit().assign([episode("a")]))


@st.composite
def trees(draw: st.DrawFn) -> Trajectory:
    """Message graphs below a prompt with ids, every token another, samples with log-probs."""
    nodes = [node(None, "user", (0,))]
    for at in range(1, draw(st.integers(1, 14)) + 1):
        parent = draw(st.integers(0, at - 1))
        role = draw(st.sampled_from(["assistant", "tool", "user"]))
        size = draw(st.integers(1, 3))
        nodes.append(node(parent, role, tuple(100 * at + one for one in range(size)), policy="p"))
    return Trajectory(nodes=tuple(nodes))


@given(st.lists(trees(), min_size=1, max_size=3))
def test_every_sample_of_any_tree_is_learned_once_with_its_own_worth(
    found: list[Trajectory],
) -> None:
    shifted = [
        replace(tree, nodes=tuple(
            replace(each, token_ids=tuple(one + 10_000 * number for one in each.token_ids))
            for each in tree.nodes))
        for number, tree in enumerate(found)
    ]  # fmt: skip
    one = episode("a", 1.0, *shifted)
    credits = paid(one)
    rows = rl_rows([one], credits)
    learned: dict[int, tuple[float, float]] = {}
    for row in rows:
        parts = zip(row.segments, row.sampled, row.logprobs, row.advantages, strict=True)
        for ids, sampled, logprobs, worth in parts:
            assert (len(logprobs) == len(ids)) if sampled else (logprobs == () and worth == 0)
            if sampled:
                for token, logp in zip(ids, logprobs, strict=True):
                    assert token not in learned, "a sampled token counts twice"
                    learned[token] = (logp, worth)
    want = {
        token: (logp, credits["a", number, at])
        for number, tree in enumerate(shifted)
        for at, each in enumerate(tree.nodes)
        if each.sampled
        for token, logp in zip(each.token_ids, each.logprobs or (), strict=True)
    }
    assert learned == want
    prefixes = [
        branch.token_ids for tree in shifted if any(n.sampled for n in tree.nodes)
        for branch in ratio_branches(tree)
    ]  # fmt: skip
    assert all(any(whole[: len(flat(row))] == flat(row) for whole in prefixes) for row in rows)
