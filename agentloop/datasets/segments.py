"""A branch in, the segments of its row out: exact tokens, which of them are learned from, by whom.

One decision: a segment is one sampled message that is learned from, or a longest run of other
tokens of one attempt; so a row has one advantage per sampled message, and no more segments than
that needs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from agentloop.datasets.groups import attempts
from agentloop.records import Node, Trajectory
from agentloop.trajectories.branches import Branch


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens in a row."""

    ids: tuple[int, ...]
    attempt: int
    node: int | None = None
    """The sampled message to learn from; `None` for context."""
    logprobs: tuple[float, ...] = ()


def cut(
    branch: Branch, trajectory: Trajectory, learns: Callable[[int, int], bool]
) -> list[Segment]:
    """The branch from its root to the last message that is learned from, which is decided by
    `learns(node, place of its first token)` among the sampled; empty when there is none."""
    which = attempts(trajectory)
    found: list[Segment] = []
    end, place = 0, 0
    for at in branch.nodes:
        size = len(trajectory.nodes[at].token_ids)
        ids = branch.token_ids[place : place + size]
        if size and trajectory.nodes[at].sampled and learns(at, place):
            logprobs = (branch.logprobs or ())[place : place + size]
            found.append(Segment(ids=ids, attempt=which[at], node=at, logprobs=logprobs))
            end = len(found)
        elif size and found and found[-1].node is None and found[-1].attempt == which[at]:
            found[-1] = Segment(ids=found[-1].ids + ids, attempt=which[at])
        elif size:
            found.append(Segment(ids=ids, attempt=which[at]))
        place += size
    return found[:end]


def fields(segments: Sequence[Segment], trajectory: Trajectory) -> dict[str, Any]:
    """What a `Row` says of these segments; its policy is that of the last. A row has one sampling:
    with samples of several settings it has none, and no log-probs, so no ratio is taken on it."""
    several = len({each.attempt for each in segments}) > 1
    learned = [trajectory.nodes[each.node] for each in segments if each.node is not None]
    alike = len({setting(node) for node in learned}) == 1
    known = alike and all(each.logprobs for each in segments if each.node is not None)
    return {
        "segments": tuple(each.ids for each in segments),
        "sampled": tuple(each.node is not None for each in segments),
        "logprobs": tuple(each.logprobs for each in segments) if known else (),
        "policy": learned[-1].policy,
        "sampling": learned[-1].sampling if alike else None,
        "attempts": tuple(each.attempt for each in segments) if several else (),
    }


def setting(node: Node) -> Hashable:
    """What decides the probability of a sampled token besides the tokens before it: the version
    that sampled it, the temperature and the cut-offs."""
    how = node.sampling
    return node.policy, None if how is None else (how.temperature, how.top_p, how.top_k)
