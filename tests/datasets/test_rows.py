"""Rows hold the exact sampled ids, learn nothing else, and never show the collected prompt."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agentloop.datasets.rows import sft_rows, unusable, why_unusable
from agentloop.records import Episode, Message, Node, Score, Task, Trajectory

SECRET = "Example: gcd(12, 18) is 6"


def node(parent: int | None, role: str, ids: tuple[int, ...] = (), **fields: object) -> Node:
    sampled = role == "assistant"
    return Node(
        parent=parent,
        message=Message(role=role, content=f"{role} text"),  # type: ignore[arg-type]
        token_ids=ids,
        sampled=sampled,
        **fields,  # type: ignore[arg-type]
    )


def conversation() -> Trajectory:
    """system, user, call, tool output, answer: 1.. prompt, 10.. call, 20.. tool, 30.. answer."""
    return Trajectory(
        nodes=(
            Node(parent=None, message=Message(role="system", content=SECRET)),
            node(0, "user", (1, 2, 3)),
            node(1, "assistant", (10, 11), logprobs=(-0.1, -0.2), policy="p1"),
            node(2, "tool", (20, 21, 22)),
            node(3, "assistant", (30, 31), logprobs=(-0.3, -0.4), policy="p1"),
        )
    )


def episode(*trajectories: Trajectory) -> Episode:
    return Episode(
        id="ep-1",
        task=Task(id="t-1", prompt="user text"),
        bundle="b",
        purpose="collect",
        run="r",
        seed=0,
        trajectories=trajectories,
        score=Score(value=1.0, success=True, source="s"),
    )


def test_a_row_is_the_bare_prompt_and_the_exact_later_tokens() -> None:
    (row,) = sft_rows([episode(conversation())], system="Be brief.")
    assert row.prompt == (
        Message(role="system", content="Be brief."),
        Message(role="user", content="user text"),
    )
    assert row.segments == ((10, 11), (20, 21, 22), (30, 31))
    assert row.sampled == (True, False, True)
    assert row.logprobs == ((-0.1, -0.2), (), (-0.3, -0.4))
    assert (row.episode, row.group, row.policy) == ("ep-1", "t-1", "p1")


def test_the_collected_system_text_is_nowhere_in_a_row() -> None:
    for system in ("", "Be brief."):
        (row,) = sft_rows([episode(conversation())], system=system)
        assert SECRET not in repr(row)
        assert all(token not in (1, 2, 3) for segment in row.segments for token in segment)


def test_without_a_system_text_the_prompt_has_none() -> None:
    (row,) = sft_rows([episode(conversation())], system="")
    assert [message.role for message in row.prompt] == ["user"]


def test_what_follows_the_last_sample_is_dropped() -> None:
    whole = conversation()
    longer = replace(whole, nodes=(*whole.nodes, node(4, "tool", (40, 41))))
    assert sft_rows([episode(longer)], system="") == sft_rows([episode(whole)], system="")


def test_several_unsampled_messages_between_samples_are_one_segment() -> None:
    nodes = conversation().nodes
    two_tools = Trajectory(
        nodes=(*nodes[:3], node(2, "tool"), node(3, "tool", (20, 21)), replace(nodes[4], parent=4))
    )
    (row,) = sft_rows([episode(two_tools)], system="")
    assert row.segments == ((10, 11), (20, 21), (30, 31))


def test_a_fork_gives_two_rows_and_each_sample_is_learned_once() -> None:
    nodes = conversation().nodes
    forked = Trajectory(nodes=(*nodes, node(2, "tool", (50,)), node(5, "assistant", (60,))))
    first, second = sft_rows([episode(forked)], system="")
    assert first.segments == ((10, 11), (20, 21, 22), (30, 31))
    assert (second.segments, second.sampled) == (((10, 11, 50), (60,)), (False, True))


def test_unusable_trajectories_are_skipped_and_counted() -> None:
    nodes = conversation().nodes
    good = conversation()
    text_only = Trajectory(nodes=tuple(replace(each, token_ids=()) for each in nodes))
    lost_tool = Trajectory(nodes=(*nodes[:3], replace(nodes[3], token_ids=()), nodes[4]))
    misaligned = Trajectory(nodes=(*nodes[:4], replace(nodes[4], logprobs=(-0.3,))))
    frozen = replace(good, trainable=False)
    silent = Trajectory(nodes=nodes[:2])
    mixed = [episode(good, frozen, silent), episode(text_only, lost_tool), episode(misaligned)]
    assert len(sft_rows(mixed, system="")) == 1
    assert unusable(mixed) == {
        "not_trainable": 1,
        "no_samples": 1,
        "no_token_ids": 2,
        "misaligned_logprobs": 1,
    }
    assert why_unusable(good) is None


@given(st.data())
def test_every_sampled_token_of_any_tree_is_learned_exactly_once(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12))
    nodes = [node(None, "user", (0,))]
    for at in range(1, size + 1):
        parent = data.draw(st.integers(0, at - 1))
        role = data.draw(st.sampled_from(["assistant", "tool"]))
        ids = data.draw(st.integers(1, 3))
        nodes.append(node(parent, role, tuple(1000 * at + i for i in range(ids))))
    tree = Trajectory(nodes=tuple(nodes))
    rows = sft_rows([episode(tree)], system="x")
    learned = [
        token
        for row in rows
        for segment, flag in zip(row.segments, row.sampled, strict=True)
        if flag
        for token in segment
    ]
    assert sorted(learned) == sorted(t for n in nodes if n.sampled for t in n.token_ids)
