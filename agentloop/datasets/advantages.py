"""Rewards in, advantages out: pure functions on floats, so that a toy and a phase run the same.

A group is what was sampled for one task from one start; all its rewards are given at once. One
decision: a group whose rewards are all the same (to rounding) gets exact zeros, whatever it is
divided by. Nothing is added to a deviation, so a reward times 100 gives the same advantages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from agentloop.errors import UsageError

Baseline = Literal["mean", "mean_std", "leave_one_out"]
"""What is taken from a reward: the group's mean; that, and divide by its deviation; or the mean of
the others (then a reward is no part of its own baseline)."""

_SAME = 1e-9
"""Rewards that differ by less than this part of the largest differ by rounding alone."""


def normalised(rewards: Sequence[float], baseline: Baseline) -> list[float]:
    """The advantages of one group by the rule named. Raises `UsageError` for a reward that is not
    finite."""
    if baseline == "leave_one_out":
        return leave_one_out(rewards)
    return group_centred(rewards, scale=baseline == "mean_std")


def group_centred(rewards: Sequence[float], *, scale: bool = False) -> list[float]:
    """r - mean (Liu et al. 2025, Dr. GRPO), with `scale` divided by the population standard
    deviation (Shao et al. 2024, GRPO). They add up to 0."""
    values = _finite(rewards)
    if _same(values):
        return [0.0] * len(values)
    mean = math.fsum(values) / len(values)
    centred = [value - mean for value in values]
    if not scale:
        return centred
    deviation = math.sqrt(math.fsum(value * value for value in centred) / len(values))
    return [value / deviation for value in centred]


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """r_i - mean of the other K - 1 (Kool et al. 2019; RLOO), which is K / (K - 1) (r_i - mean); a
    reward without others gets 0."""
    size = len(rewards)
    return [value * size / max(1, size - 1) for value in group_centred(rewards)]


def percentile(values: Sequence[float], q: float) -> float:
    """The `q`-th percentile (0 to 100), linear between the two nearest. Raises `UsageError` without
    values."""
    ordered = sorted(_finite(values))
    if not ordered or not 0 <= q <= 100:
        raise UsageError(f"the {q}th percentile of {len(ordered)} values does not exist")
    place = (len(ordered) - 1) * q / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def recalibrated(
    rewards: Sequence[float], history: Sequence[float], q: float = 50.0
) -> list[float]:
    """r - the `q`-th percentile of `history` (group means of late), with no division: what was good
    when it was stored may be ordinary by now (Qin et al. 2025, SPEAR)."""
    base = percentile(history, q)
    return [value - base for value in _finite(rewards)]


def step_and_episode(
    rewards: Sequence[float], steps: Sequence[Sequence[float]], *, alpha: float = 1.0,
    baseline: Baseline = "mean_std",
) -> list[list[float]]:  # fmt: skip
    """A_E + alpha A_S for each step of each episode of one group (Liu et al. 2025, iStar): A_E from
    the episodes' rewards, A_S from the steps' own, both normalised in the group, the latter over
    *all* steps of all its episodes. Raises `UsageError` when the two lists differ in length."""
    if len(rewards) != len(steps):
        raise UsageError(f"{len(rewards)} episodes have the steps of {len(steps)}")
    whole = normalised(rewards, baseline)
    flat = iter(normalised([one for each in steps for one in each], baseline))
    return [
        [one + alpha * next(flat) for _ in each] for one, each in zip(whole, steps, strict=True)
    ]


def multi_critic(
    streams: Mapping[str, Sequence[float]], weights: Mapping[str, float], *, clip: float = 5.0
) -> list[float]:
    """The weighted sum of several rewards, each divided by its deviation in the group *before* they
    are added, so that none drowns another by its unit; each held in [-clip, clip], because a rare
    event's deviation is set by a few samples. A constant stream adds 0. Raises `UsageError` when
    the streams differ in length or one of `weights` has none."""
    if missing := sorted(weights.keys() - streams.keys()):
        raise UsageError(f"there is no reward named `{missing[0]}` to weigh")
    used = [(weight, group_centred(streams[name], scale=True)) for name, weight in weights.items()]
    if len({len(values) for _, values in used}) > 1:
        raise UsageError("the rewards to be added are of different numbers of episodes")
    columns = zip(*(values for _, values in used), strict=True)
    return [
        math.fsum(
            weight * min(clip, max(-clip, value))
            for (weight, _), value in zip(used, column, strict=True)
        )
        for column in columns
    ]


def progress(first: float, second: float, bonus: float = 10.0) -> float:
    """The reward of a second attempt, r2 + bonus (r2 - r1): it pays to mend and costs to spoil
    (Kumar et al. 2024, SCoRe). The first attempt is paid r1 alone."""
    return second + bonus * (second - first)


def two_attempts(
    pairs: Sequence[tuple[float, float]], *, bonus: float = 10.0, first: float = 1.0,
    baseline: Baseline = "mean",
) -> list[tuple[float, float]]:  # fmt: skip
    """Advantages of both attempts of each episode of one group: each attempt against its own
    baseline, the bonus in the second alone. `first` 0 gives the first attempt none (the stage in
    which it is only held where it was)."""
    ones = normalised([one for one, _ in pairs], baseline)
    twos = normalised([progress(one, two, bonus) for one, two in pairs], baseline)
    return [(first * one, two) for one, two in zip(ones, twos, strict=True)]


def _finite(values: Sequence[float]) -> list[float]:
    for value in values:
        if not math.isfinite(value):
            raise UsageError(f"a reward of {value} cannot be learned from; give finite numbers")
    return [float(value) for value in values]


def _same(values: Sequence[float]) -> bool:
    if not values:
        return True
    return max(values) - min(values) <= _SAME * max(map(abs, values))
