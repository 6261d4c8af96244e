"""Which episodes to learn from, as data: conditions, then by meaning, then at most so many.

In: episodes with their latest scores, and what the choice is lent (held-out tasks, search,
embedder, the order of policy versions, the time). Out: `Chosen`: those that passed in their order,
and how many were left out for which reason. Two decisions. Held-out tasks are an error and not a
condition, asked after the conditions, so that a whole log may be given. A group's statistics (the
share that was right, whether rewards differ, what credit compares with) are of all its scored
samples, also of those that a condition leaves out: a baseline of the chosen alone is biased by the
choice. Family labels are never read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from operator import attrgetter
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from agentloop.datasets.decontaminate import Decontaminate
from agentloop.datasets.groups import (
    countable,
    groups,
    mixed,
    policies,
    shares,
    tools_called,
    trained,
)
from agentloop.datasets.near import Dedupe, Near, Search
from agentloop.datasets.select import Count, Key, capped, distinct, guard_held_out
from agentloop.errors import UsageError
from agentloop.ports import Embedder, part
from agentloop.records import Episode, Reason, Skill, Task, record

BASE = "base"
"""What the base model is called among policy versions."""
Passes = Callable[[Episode], bool]
Narrows = Callable[[list[Episode]], list[Episode]]
T = TypeVar("T")


@record
class Chosen:
    """What a selection gave: all that rows are made of."""

    episodes: tuple[Episode, ...]
    nearness: dict[str, float] = field(default_factory=dict)
    """Cosine to the text of `near`, by episode id; empty without it."""
    members: tuple[Episode, ...] = ()
    """What credit compares with: whole groups, those members included that were not chosen. Empty
    is the chosen alone."""
    shares: dict[str, float] = field(default_factory=dict)
    """How much of its group was right, by episode id."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Episodes not chosen, by reason."""


@dataclass(frozen=True, kw_only=True)
class Lent:
    """What a selection may need beside the episodes; each only where a field of it is used."""

    held_out: Sequence[Task] = ()
    search: Search | None = None
    skill: Callable[[str], Skill] | None = None
    """A skill by its id."""
    embedder: Embedder | None = None
    versions: Sequence[str] = ()
    """Policy versions from oldest to newest; `base` is the base model."""
    now: float | None = None
    """Unix seconds that ages are counted from."""
    kind: Key | None = None
    """Names the group that `cap_per_kind` counts, such as a cluster of task texts."""


@part
class Filters:
    """Scored, trainable episodes that pass every condition given; an empty one is none."""

    runs: tuple[str, ...] = ()
    """Of these runs or cycles."""
    purposes: tuple[Literal["collect", "train", "serve"], ...] = ("collect",)
    bundles: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    """Sampled by these versions alone; `base` is the base model."""
    since: datetime | None = None
    until: datetime | None = None
    """Begun from `since` on and before `until`; without a time zone, UTC."""
    success: bool | None = None
    min_reward: float | None = None
    max_reward: float | None = None
    tools: tuple[str, ...] = ()
    """Every one of these was called."""
    min_tool_calls: int = 0
    without_failures: tuple[Reason, ...] = ()
    """Besides those of the infrastructure, which are always left out."""
    max_age_versions: Annotated[int, Field(ge=0)] | None = None
    """0: sampled by the newest version; 1: or by the one before; ..."""
    max_age_seconds: Annotated[float, Field(ge=0.0)] | None = None
    hacks: dict[str, float] = Field(default_factory=dict)
    """Left out when the score's part of this name is above this threshold."""
    mixed_groups: bool = False
    """Left out when all rewards of the group are the same."""
    min_share: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    max_share: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """How much of the group was right: neither too hard nor too easy."""
    decontaminate: Decontaminate | None = None
    near: Near | None = None
    distinct: bool = False
    """Of episodes with the same samples on one task only the first: for imitation. A method that
    compares within a group needs the others."""
    dedupe: Dedupe | None = None
    cap_per_task: Count | None = None
    cap_per_kind: Count | None = None
    limit: Count | None = None

    def choose(self, episodes: Sequence[Episode], lent: Lent | None = None) -> Chosen:
        """The episodes to learn from.

        Raises `UsageError` for an episode of a held-out task, or when a condition needs something
        that was not lent.
        """
        lent = lent or Lent()
        left_out: Counter[str] = Counter()
        kept: list[Episode] = []
        checks = list(self._checks(episodes, lent))
        for episode in episodes:
            reason = next((name for name, passes in checks if not passes(episode)), None)
            if reason is None:
                kept.append(episode)
            else:
                left_out[reason] += 1
        guard_held_out(kept, lent.held_out)
        nearness: dict[str, float] = {}
        for name, narrow in self._narrowings(lent, nearness):
            before = len(kept)
            kept = narrow(kept)
            if before > len(kept):
                left_out[name] += before - len(kept)
        share = shares(episodes)
        return Chosen(
            episodes=tuple(kept),
            nearness={one.id: nearness[one.id] for one in kept if one.id in nearness},
            members=self._members(episodes, lent),
            shares={one.id: share[one.id] for one in kept},
            left_out=dict(sorted(left_out.items())),
        )

    def _members(self, episodes: Sequence[Episode], lent: Lent) -> tuple[Episode, ...]:
        """All that count of the groups that the conditions on where, when and by whom ask for,
        however they went."""
        scope = [passes for _, passes in self._scope(lent)]
        return tuple(
            one
            for members in groups(filter(countable, episodes)).values()
            if any(all(passes(each) for passes in scope) for each in members)
            for one in members
        )

    def _checks(self, episodes: Sequence[Episode], lent: Lent) -> Iterator[tuple[str, Passes]]:
        """(reason, condition) of one episode alone, in the order in which they are asked."""
        yield from self._scope(lent)
        yield "broken or unscored", countable
        yield "not trainable", lambda one: bool(trained(one))
        yield from self._outcomes()
        if self.mixed_groups:
            differ = mixed(episodes)
            yield "group of one reward", lambda one: one.id in differ
        low, high = self.min_share, self.max_share
        share = shares(episodes) if (low, high) != (None, None) else {}
        if low is not None:
            yield "group too hard", lambda one: share[one.id] >= low
        if high is not None:
            yield "group too easy", lambda one: share[one.id] <= high

    def _scope(self, lent: Lent) -> Iterator[tuple[str, Passes]]:
        """Conditions on where, when and by whom it was sampled."""
        yield "purpose", lambda one: one.purpose in self.purposes
        if self.runs:
            yield "run", lambda one: one.run in self.runs
        if self.bundles:
            yield "bundle", lambda one: one.bundle in self.bundles
        yield from self._times(lent)
        yield from self._versions(lent)

    def _times(self, lent: Lent) -> Iterator[tuple[str, Passes]]:
        if self.since is not None:
            since = _seconds(self.since)
            yield "before since", lambda one: one.started >= since
        if self.until is not None:
            until = _seconds(self.until)
            yield "after until", lambda one: one.started < until
        if self.max_age_seconds is not None:
            oldest = _given(lent.now, "max_age_seconds", "the time") - self.max_age_seconds
            yield "stale", lambda one: one.started >= oldest

    def _versions(self, lent: Lent) -> Iterator[tuple[str, Passes]]:
        if self.policies:
            yield "policy", lambda one: set(_versions(one)) <= set(self.policies)
        if self.max_age_versions is not None:
            if not lent.versions:
                _given(None, "max_age_versions", "the policy versions")
            fresh = set(lent.versions[-self.max_age_versions - 1 :])
            yield "stale", lambda one: set(_versions(one)) <= fresh

    def _outcomes(self) -> Iterator[tuple[str, Passes]]:
        if self.without_failures:
            yield (
                "failure",
                lambda one: one.failure is None or one.failure.reason not in self.without_failures,
            )
        if self.success is not None:
            yield "success", lambda one: one.success == self.success
        low, high = self.min_reward, self.max_reward
        if low is not None:
            yield "reward", lambda one: one.score is not None and one.score.value >= low
        if high is not None:
            yield "reward", lambda one: one.score is not None and one.score.value <= high
        if self.tools:
            yield "tools", lambda one: set(self.tools) <= set(tools_called(one))
        if self.min_tool_calls:
            yield "tools", lambda one: len(tools_called(one)) >= self.min_tool_calls
        if self.hacks:
            yield "hack", lambda one: not _hacked(one, self.hacks)

    def _narrowings(self, lent: Lent, nearness: dict[str, float]) -> Iterator[tuple[str, Narrows]]:
        """(reason, choice among those that are left), in order; `nearness` is filled in."""
        if self.decontaminate is not None:
            yield "contaminated", partial(_clean, self.decontaminate, lent.held_out)
        if self.near is not None:
            search = _given(lent.search, "near", "a search")
            embedder = _given(lent.embedder, "near", "an embedder")
            near = self.near

            def nearest(kept: list[Episode]) -> list[Episode]:
                nearness.update(near.choose(kept, search, embedder, skill=lent.skill))
                return [one for one in kept if one.id in nearness]

            yield "not near", nearest
        if self.distinct:
            yield "same samples", distinct
        if self.dedupe is not None:
            embedder = _given(lent.embedder, "dedupe", "an embedder")
            yield "same meaning", partial(_unlike, self.dedupe, embedder)
        if self.cap_per_task is not None:
            task = attrgetter("task.id")
            yield "cap_per_task", partial(capped, limit=self.cap_per_task, key=task)
        if self.cap_per_kind is not None:
            yield "cap_per_kind", partial(capped, limit=self.cap_per_kind, key=lent.kind or _all)
        if self.limit is not None:
            yield "limit", partial(capped, limit=self.limit, key=_all)


def _clean(rule: Decontaminate, held_out: Sequence[Task], kept: list[Episode]) -> list[Episode]:
    prompts = [task.prompt for task in held_out]
    found = rule.repeated([one.task.prompt for one in kept], prompts)
    return [one for one, which in zip(kept, found, strict=True) if which is None]


def _unlike(rule: Dedupe, embedder: Embedder, kept: list[Episode]) -> list[Episode]:
    ids = rule.choose(kept, embedder)
    return [one for one in kept if one.id in ids]


def _all(_: Episode) -> str:
    return ""


def _hacked(episode: Episode, hacks: dict[str, float]) -> bool:
    parts = episode.score.parts if episode.score is not None else {}
    return any(parts.get(name, threshold) > threshold for name, threshold in hacks.items())


def _versions(episode: Episode) -> list[str]:
    return [version or BASE for version in policies(episode)]


def _seconds(when: datetime) -> float:
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _given(value: T | None, key: str, what: str) -> T:
    if value is None:
        raise UsageError(f"`{key}` needs {what}, and none was lent to the selection")
    return value
