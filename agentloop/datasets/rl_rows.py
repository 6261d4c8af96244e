"""Trajectories to rows for methods that weigh a token by what it was worth and how likely it was.

In: chosen episodes and their credits. Out: one `Row` per branch that has a sample of its own, with
every token of the branch as the engine saw it (prompt included, so `Row.prompt` is empty), the
log-probs the samples were drawn with, one advantage per sampled segment, and whether the episode
was right. Two decisions: only `ratio_branches` makes these rows, and a sample that two branches
share is learned from in the first of them; in the other it is context. A row has one policy and one
sampling, so a trajectory with a branch of several is left out and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, TypeAlias

from agentloop.datasets.credit import Credits
from agentloop.datasets.groups import group_of
from agentloop.datasets.rows import Unusable, why_unusable
from agentloop.datasets.segments import Segment, cut, fields, setting
from agentloop.errors import UsageError
from agentloop.records import Episode, Row, Trajectory
from agentloop.trajectories.branches import RatioBranch, basis, branches, ratio_branches
from agentloop.trajectories.redact import Redactor

NoRatio: TypeAlias = Unusable | Literal["no_logprobs", "no_prompt_ids", "several_settings"]


def rl_rows(
    episodes: Sequence[Episode],
    credits: Credits,
    *,
    shares: Mapping[str, float] | None = None,
    redact: Redactor | None = None,
) -> list[Row]:
    """One row per branch of each usable trajectory, in order. `shares` gives `Row.share` by episode
    id.

    Trajectories without exact ids or log-probs, or with several policies or temperatures on one
    branch, are left out; `unusable_for_ratios` says how many and why. Raises `UsageError` when a
    sample has no credit.
    """
    redact = redact or Redactor.from_environment()
    rows: list[Row] = []
    for episode in episodes:
        for number, trajectory in enumerate(episode.trajectories):
            if why_no_ratio(trajectory, redact) is not None:
                continue
            for branch in ratio_branches(trajectory):
                own = partial(_own, branch)
                if found := cut(branch, trajectory, own):
                    rows.append(
                        Row(
                            episode=episode.id,
                            prompt=(),
                            advantages=_advantages(found, (episode.id, number), credits),
                            group=group_of(episode),
                            reward=episode.score.value if episode.score else None,
                            share=(shares or {}).get(episode.id),
                            label=episode.success if episode.score else None,
                            **fields(found, trajectory),
                        )
                    )
    return rows


def unusable_for_ratios(
    episodes: Sequence[Episode], *, redact: Redactor | None = None
) -> dict[NoRatio, int]:
    """How many trajectories `rl_rows` leaves out, by reason."""
    redact = redact or Redactor.from_environment()
    reasons = (why_no_ratio(each, redact) for one in episodes for each in one.trajectories)
    return dict(Counter(reason for reason in reasons if reason is not None))


def why_no_ratio(trajectory: Trajectory, redact: Redactor | None = None) -> NoRatio | None:
    """Why no ratio of probabilities can be taken on `trajectory`; `None` when one can."""
    reason = why_unusable(trajectory, redact)
    if reason is not None:
        return reason
    if basis(trajectory) != "ratio":
        return "no_logprobs"
    if not has_prompt_ids(trajectory):
        return "no_prompt_ids"
    return "several_settings" if _several_settings(trajectory) else None


def has_prompt_ids(trajectory: Trajectory) -> bool:
    """Whether the tokens that every sample was drawn after are known."""
    for branch in branches(trajectory):
        nodes = [trajectory.nodes[at] for at in branch.nodes]
        if nodes[0].sampled or any(
            after.sampled and not before.token_ids for before, after in pairwise(nodes)
        ):
            return False
    return True


def _several_settings(trajectory: Trajectory) -> bool:
    """Whether a branch would learn from samples of its own that were drawn in different ways."""
    if len({setting(node) for node in trajectory.nodes if node.sampled}) == 1:
        return False
    seen: set[int] = set()
    for branch in branches(trajectory):
        own = (trajectory.nodes[at] for at in branch.nodes if at not in seen)
        if len({setting(node) for node in own if node.sampled}) > 1:
            return True
        seen.update(branch.nodes)
    return False


def _own(branch: RatioBranch, _: int, place: int) -> bool:
    """Whether no earlier branch has the sample that begins at `place`."""
    return place >= branch.start


def _advantages(
    segments: Sequence[Segment], whose: tuple[str, int], credits: Credits
) -> tuple[float, ...]:
    try:
        return tuple(
            0.0 if each.node is None else credits[(*whose, each.node)] for each in segments
        )
    except KeyError:
        raise UsageError(
            f"episode `{whose[0]}` was given no credit; assign it to all that are chosen"
        ) from None
