"""Who earned it: episodes in, an advantage for each sampled message out.

A credit is a part whose one method takes whole groups of a phase, those members included that no
row is made of; the arithmetic is in `advantages`. One decision: advantages are by (episode,
trajectory, node) and not by row, so that how a trajectory is cut into rows cannot change what a
message is paid. Groups are `group_of`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Protocol, TypeAlias, runtime_checkable

from pydantic import Field

from agentloop.datasets.advantages import (
    Baseline,
    multi_critic,
    normalised,
    recalibrated,
    step_and_episode,
    two_attempts,
)
from agentloop.datasets.groups import attempts, groups, samples
from agentloop.errors import UsageError
from agentloop.ports import part
from agentloop.records import Episode

Credits: TypeAlias = dict[tuple[str, int, int], float]
"""Advantage by (episode id, trajectory, node) of every sampled message that may be learned from."""


@runtime_checkable
class Credit(Protocol):
    """How rewards become advantages."""

    def assign(self, episodes: Sequence[Episode]) -> Credits:
        """Advantages of all samples of `episodes`, whatever their order. Raises `UsageError` when
        an episode lacks what the rule reads."""
        ...


@part
class GroupCredit:
    """The episode's reward against its group, the same for all its samples."""

    baseline: Baseline = "mean"
    of: str = ""
    """A part of the score; empty is its value."""

    def assign(self, episodes: Sequence[Episode]) -> Credits:
        """See `Credit.assign`."""
        credits: Credits = {}
        for members in groups(episodes).values():
            rewards = [reward(one, self.of) for one in members]
            for one, each in zip(members, normalised(rewards, self.baseline), strict=True):
                credits.update(_alike(one, each))
        return credits


@part
class PercentileCredit:
    """The episode's reward minus a percentile of the group means of all episodes given: a baseline
    over tasks, for trajectories of which no whole group is left."""

    q: Annotated[float, Field(ge=0.0, le=100.0)] = 50.0
    last: Annotated[int, Field(ge=1)] = 10_240
    """Of so many groups, the newest."""

    def assign(self, episodes: Sequence[Episode]) -> Credits:
        """See `Credit.assign`."""
        found = sorted(
            (max(one.started for one in members), name, _mean(members))
            for name, members in groups(episodes).items()
        )
        history = [mean for *_, mean in found[-self.last :]]
        values = recalibrated([reward(one) for one in episodes], history, self.q) if found else []
        credits: Credits = {}
        for one, each in zip(episodes, values, strict=True):
            credits.update(_alike(one, each))
        return credits


@part
class StepCredit:
    """The episode's advantage plus `alpha` times that of the step, from `Score.steps` (one number
    per sampled message, in order)."""

    alpha: float = 1.0
    baseline: Baseline = "mean_std"

    def assign(self, episodes: Sequence[Episode]) -> Credits:
        """See `Credit.assign`."""
        credits: Credits = {}
        for members in groups(episodes).values():
            steps = [_steps(one) for one in members]
            values = step_and_episode(
                [reward(one) for one in members], steps, alpha=self.alpha, baseline=self.baseline
            )
            for one, each in zip(members, values, strict=True):
                if places := _places(one):
                    credits.update(zip(places, each, strict=True))
        return credits


@part
class CriticsCredit:
    """Several parts of the score, each normalised in the group, then weighed and added."""

    weights: Annotated[dict[str, float], Field(min_length=1)]
    """By the name of a part; the empty name is the score's value."""
    clip: Annotated[float, Field(gt=0.0)] = 5.0

    def assign(self, episodes: Sequence[Episode]) -> Credits:
        """See `Credit.assign`."""
        credits: Credits = {}
        for members in groups(episodes).values():
            streams = {name: [reward(one, name) for one in members] for name in self.weights}
            values = multi_critic(streams, self.weights, clip=self.clip)
            for one, each in zip(members, values, strict=True):
                credits.update(_alike(one, each))
        return credits


@part
class AttemptsCredit:
    """Two attempts in one conversation, each against its own baseline; the second is also paid for
    what it made of the first."""

    bonus: float = 10.0
    first: float = 1.0
    """Weight of the first attempt's own advantage; 0 leaves it where it was."""
    first_part: str = "first"
    """The part of the score that is the first attempt's reward; its value is the second's."""
    baseline: Baseline = "mean"

    def assign(self, episodes: Sequence[Episode]) -> Credits:
        """See `Credit.assign`. An episode that ended before its second attempt counts in the
        baselines by the value it was given."""
        credits: Credits = {}
        for members in groups(episodes).values():
            pairs = [(reward(one, self.first_part), reward(one)) for one in members]
            values = two_attempts(pairs, bonus=self.bonus, first=self.first, baseline=self.baseline)
            for one, each in zip(members, values, strict=True):
                which = [attempts(trajectory) for trajectory in one.trajectories]
                for number, at in samples(one):
                    later = which[number][at] > 1
                    credits[one.id, number, at] = each[1] if later else each[0]
        return credits


def reward(episode: Episode, name: str = "") -> float:
    """The value of an episode's score, or of a part of it. Raises `UsageError` without one."""
    if episode.score is None:
        raise UsageError(f"episode `{episode.id}` has no score; credit is for scored episodes")
    if not name:
        return episode.score.value
    if name not in episode.score.parts:
        known = ", ".join(sorted(episode.score.parts)) or "none"
        raise UsageError(f"the score of `{episode.id}` has no part `{name}`; it has: {known}")
    return episode.score.parts[name]


def _places(episode: Episode) -> list[tuple[str, int, int]]:
    return [(episode.id, number, at) for number, at in samples(episode)]


def _alike(episode: Episode, advantage: float) -> Credits:
    return dict.fromkeys(_places(episode), advantage)


def _mean(members: Sequence[Episode]) -> float:
    return math.fsum(reward(one) for one in members) / len(members)


def _steps(episode: Episode) -> tuple[float, ...]:
    """Its step rewards; those of one that held a secret count, though nobody learns from it."""
    steps = episode.score.steps if episode.score is not None else ()
    many = len(samples(episode))
    if many and len(steps) != many:
        raise UsageError(
            f"the score of `{episode.id}` has {len(steps)} step rewards for {many} sampled "
            "messages; give one for each"
        )
    return steps
