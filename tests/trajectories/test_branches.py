"""Branches of random message graphs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import StoreError, UsageError
from agentloop.records import Message, Node, Trajectory
from agentloop.trajectories.branches import basis, branches, ratio_branches


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    nodes, token = [], 0
    for index in range(draw(st.integers(0, 12))):
        parent = draw(st.none() | st.integers(0, index - 1)) if index else None
        size, sampled = draw(st.integers(0, 4)), draw(st.booleans())
        has = draw(st.booleans()) and sampled
        nodes.append(
            Node(
                parent=parent,
                message=Message(role="assistant" if sampled else "user", content=str(index)),
                token_ids=tuple(range(token, token + size)),  # every token is told from the others
                sampled=sampled,
                logprobs=tuple(-float(t) - 1 for t in range(token, token + size)) if has else None,
            )
        )
        token += size
    return Trajectory(nodes=tuple(nodes))


@given(trajectories())
def test_branches_cover_the_graph(trajectory: Trajectory) -> None:
    found = branches(trajectory)
    nodes = trajectory.nodes
    assert {index for branch in found for index in branch.nodes} == set(range(len(nodes)))
    sampled = {token for node in nodes if node.sampled for token in node.token_ids}
    for branch in found:
        steps = zip((None, *branch.nodes), branch.nodes, strict=False)
        assert all(nodes[index].parent == parent for parent, index in steps)
        assert branch.nodes[-1] not in {node.parent for node in nodes}
        assert [message.content for message in branch.messages] == [str(i) for i in branch.nodes]
        assert branch.token_ids == tuple(t for i in branch.nodes for t in nodes[i].token_ids)
        assert branch.mask == tuple(token in sampled for token in branch.token_ids)
        complete = all(
            nodes[i].logprobs is not None
            for i in branch.nodes
            if nodes[i].sampled and nodes[i].token_ids
        )
        assert (branch.logprobs is not None) == complete
        if branch.logprobs is not None:
            want = [-float(t) - 1 if t in sampled else 0.0 for t in branch.token_ids]
            assert list(branch.logprobs) == want


@given(trajectories())
def test_own_tokens_are_all_tokens_once(trajectory: Trajectory) -> None:
    own = [token for branch in branches(trajectory) for token in branch.token_ids[branch.start :]]
    assert sorted(own) == sorted(t for node in trajectory.nodes for t in node.token_ids)


def test_a_long_conversation_is_one_branch() -> None:
    n = 5000
    nodes = [
        Node(parent=i - 1 if i else None, message=Message(role="user", content=""), token_ids=(i,))
        for i in range(n)
    ]
    (branch,) = branches(Trajectory(nodes=tuple(nodes)))
    assert branch.token_ids == tuple(range(n)) and branch.start == 0
    assert branch.logprobs == (0.0,) * n


@pytest.mark.parametrize("parent", [1, 0, -1])
def test_a_parent_after_its_child_is_refused(parent: int) -> None:
    node = Node(parent=parent, message=Message(role="user", content=""))
    with pytest.raises(StoreError, match="parent"):
        branches(Trajectory(nodes=(node,)))


def test_logprobs_must_fit_the_tokens() -> None:
    message = Message(role="assistant", content="")
    node = Node(parent=None, message=message, token_ids=(1, 2), sampled=True, logprobs=(0.0,))
    with pytest.raises(StoreError, match="log-probs"):
        branches(Trajectory(nodes=(node,)))


@given(trajectories())
def test_only_trajectories_with_every_log_prob_are_for_ratios(trajectory: Trajectory) -> None:
    sampled = [node for node in trajectory.nodes if node.sampled]
    usable = bool(sampled) and all(node.logprobs is not None for node in sampled)
    assert (basis(trajectory) == "ratio") == usable
    if usable:
        given_out = ratio_branches(trajectory)
        assert [one.token_ids for one in given_out] == [
            one.token_ids for one in branches(trajectory)
        ]
        assert all(len(one.logprobs) == len(one.mask) for one in given_out)
    elif trajectory.nodes:
        with pytest.raises(UsageError, match=r"token ids|log-probs"):
            ratio_branches(trajectory)


def test_a_reply_of_an_api_is_text_and_one_without_log_probs_tokens() -> None:
    def reply(**given: object) -> Trajectory:
        message = Message(role="assistant", content="x")
        return Trajectory(nodes=(Node(parent=None, message=message, sampled=True, **given),))  # type: ignore[arg-type]

    assert basis(reply()) == "text"
    assert basis(reply(token_ids=(1, 2))) == "tokens"
    assert basis(reply(token_ids=(1, 2), logprobs=(-0.1, -0.2))) == "ratio"
    assert basis(Trajectory()) == "text"
    with pytest.raises(UsageError, match="without token ids"):
        ratio_branches(reply())
    with pytest.raises(UsageError, match="without log-probs"):
        ratio_branches(reply(token_ids=(1, 2)))
