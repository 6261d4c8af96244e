"""A message graph in, its branches (root to leaf) out: each is one training row.

A branch repeats the tokens of the prefix that it shares with earlier branches; `start` says where
its own tokens begin, so that a consumer can learn from every sampled token exactly once.

Methods that weigh a token by the ratio of two policies' probabilities (PPO, GRPO and their kin)
take `RatioBranch`, and only `ratio_branches` makes one: what an API replied, without ids or without
the probability each id was sampled with, has no such type and cannot reach them by mistake.
"""

from __future__ import annotations

from typing import Literal

from agentloop.errors import StoreError, UsageError
from agentloop.records import Message, Node, Trajectory, record


@record
class Branch:
    """One path from a root to a leaf; `token_ids`, `mask` and `logprobs` have one item a token."""

    nodes: tuple[int, ...]
    """Indices of the nodes on the path, root first."""
    messages: tuple[Message, ...]
    token_ids: tuple[int, ...]
    mask: tuple[bool, ...]
    """True for tokens that the policy sampled."""
    logprobs: tuple[float, ...] | None
    """0.0 for tokens that were not sampled; `None` when a sampled node has no log-probs."""
    start: int
    """How many leading tokens an earlier branch of the same trajectory already has."""


@record
class RatioBranch(Branch):
    """A branch whose every sampled token has the log-prob that it was sampled with."""

    logprobs: tuple[float, ...]


Basis = Literal["ratio", "tokens", "text"]
"""What a trajectory may be learned from: the ratio of probabilities, likelihood of its exact
tokens, or only its text (rendered again with the learner's own chat template)."""


def basis(trajectory: Trajectory) -> Basis:
    """The most that every sampled message of the trajectory allows; `text` without any."""
    sampled = [node for node in trajectory.nodes if node.sampled]
    if not sampled or any(node.logprobs is None and not node.token_ids for node in sampled):
        return "text"
    return "tokens" if any(node.logprobs is None for node in sampled) else "ratio"


def ratio_branches(trajectory: Trajectory) -> list[RatioBranch]:
    """All branches, for a learner that needs probabilities. Raises `UsageError` for a trajectory
    of another `basis`, and what `branches` raises."""
    found: list[RatioBranch] = []
    given = basis(trajectory)
    for one in branches(trajectory):
        if given != "ratio" or one.logprobs is None:
            lacks = "token ids" if given == "text" else "log-probs"
            raise UsageError(
                f"a trajectory without {lacks} cannot be learned from by a ratio of probabilities; "
                "roll out on an endpoint that returns them, or use a method that imitates"
            )
        found.append(
            RatioBranch(
                nodes=one.nodes, messages=one.messages, token_ids=one.token_ids, mask=one.mask,
                logprobs=one.logprobs, start=one.start,
            )
        )  # fmt: skip
    return found


def branches(trajectory: Trajectory) -> list[Branch]:
    """All branches, ordered by the index of their leaf. The tokens from `start` on, over all
    branches, are the tokens of all nodes, once each.

    Raises `StoreError` when a parent does not come before its child, or when the log-probs of a
    node do not fit its tokens.
    """
    nodes = trajectory.nodes
    parents = set()
    for index, node in enumerate(nodes):
        _check(index, node)
        parents.add(node.parent)
    seen: set[int] = set()
    found = []
    for leaf in range(len(nodes)):
        if leaf not in parents:
            path = _path(nodes, leaf)
            found.append(_branch(nodes, path, seen))
            seen.update(path)
    return found


def _check(index: int, node: Node) -> None:
    if node.parent is not None and not 0 <= node.parent < index:
        raise StoreError(f"a trajectory is malformed: node {index} has the parent {node.parent}")
    if node.logprobs is not None and len(node.logprobs) != len(node.token_ids):
        raise StoreError(
            f"a trajectory is malformed: node {index} has {len(node.token_ids)} tokens "
            f"and {len(node.logprobs)} log-probs"
        )


def _path(nodes: tuple[Node, ...], leaf: int) -> tuple[int, ...]:
    path = [leaf]
    while (parent := nodes[path[-1]].parent) is not None:
        path.append(parent)
    return tuple(reversed(path))


def _branch(nodes: tuple[Node, ...], path: tuple[int, ...], seen: set[int]) -> Branch:
    token_ids: list[int] = []
    mask: list[bool] = []
    logprobs: list[float] = []
    start, complete = 0, True
    for index in path:
        node = nodes[index]
        token_ids += node.token_ids
        mask += [node.sampled] * len(node.token_ids)
        if node.sampled and node.logprobs is None and node.token_ids:
            complete = False
        kept = node.logprobs if node.sampled else None
        logprobs += kept or [0.0] * len(node.token_ids)
        if index in seen:
            start = len(token_ids)
    return Branch(
        nodes=path,
        messages=tuple(nodes[index].message for index in path),
        token_ids=tuple(token_ids),
        mask=tuple(mask),
        logprobs=tuple(logprobs) if complete else None,
        start=start,
    )
