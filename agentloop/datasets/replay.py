"""Rows kept for another update.

In: rows with rewards and advantages, and the number of updates so far. Out: rows to learn from
again. A row keeps the log-probs that it was sampled with, which is what makes its ratio right, and
is thrown away when it is too old for one. One decision: a draw pays a row anew, by how much its
reward is above what groups earn *now*; what was good once and is ordinary today is not imitated.
The state is JSON and every draw is decided by its seed, so a resumed phase draws the same.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from agentloop.datasets.advantages import percentile
from agentloop.errors import UsageError
from agentloop.ports import part
from agentloop.records import Json, Row, content_id
from agentloop.trajectories.codec import from_json, to_json

Count = Annotated[int, Field(ge=1)]


@part
class Replay:
    """How a buffer keeps and gives rows; the defaults are those of Qin et al. 2025 (SPEAR)."""

    capacity: Count = 2048
    """Rows; the oldest leave first."""
    max_age: Annotated[int, Field(ge=0)] = 5
    """Updates after which a row is too old."""
    at_least: Count = 1
    """No draw with fewer rows that are still worth it."""
    q: Annotated[float, Field(ge=0.0, le=100.0)] | None = 50.0
    """Advantages are rewards minus this percentile of the group means of late; `None` keeps those
    that were stored."""
    history: Count = 10_240
    """So many group means are remembered."""
    empty: bool = True
    """A draw takes all away, so that no row is imitated twice."""


@dataclass(frozen=True, slots=True)
class _Kept:
    step: int
    row: Row


class ReplayBuffer:
    """Rows of past updates. Not thread-safe."""

    def __init__(self, rule: Replay | None = None) -> None:
        self.rule = rule or Replay()
        self._rows: dict[str, _Kept] = {}  # in the order in which they came
        self._means: deque[float] = deque(maxlen=self.rule.history)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, rows: Sequence[Row], *, step: int) -> int:
        """Keep the rows that were better than their group (some advantage above 0), sampled at
        update `step`; how many are new. A row that is there is not stored again. Raises
        `UsageError` for a row without a reward or without log-probs."""
        new = 0
        for row in rows:
            _check(row)
            key = _key(row)
            if max(row.advantages, default=0.0) > 0 and key not in self._rows:
                self._rows[key] = _Kept(step, row)
                new += 1
        by_age = sorted(self._rows, key=lambda key: self._rows[key].step)
        for key in by_age[: max(0, len(by_age) - self.rule.capacity)]:
            del self._rows[key]
        return new

    def note(self, means: Sequence[float]) -> None:
        """Remember the mean rewards of the groups of one update, those without a row included."""
        self._means.extend(means)

    def evict(self, *, step: int, versions: Collection[str | None] | None = None) -> int:
        """Throw away what is older than `max_age` at update `step` and, with `versions`, what
        other policy versions sampled; how many."""
        stale = [
            key
            for key, kept in self._rows.items()
            if step - kept.step > self.rule.max_age
            or (versions is not None and kept.row.policy not in versions)
        ]
        for key in stale:
            del self._rows[key]
        return len(stale)

    def draw(self, n: int, *, step: int, seed: int) -> list[Row]:
        """At most `n` rows at update `step`, chosen by `seed`, with the advantages of now, all
        above 0 (as stored, while nothing was noted); none when fewer than `at_least` are worth it.
        Stale rows are evicted first."""
        self.evict(step=step)
        worth = [paid for kept in self._rows.values() if (paid := self._pay(kept.row)) is not None]
        if not worth or len(worth) < self.rule.at_least:
            return []
        chosen = random.Random(seed).sample(range(len(worth)), min(n, len(worth)))
        if self.rule.empty:
            self._rows.clear()
        return [worth[at] for at in sorted(chosen)]

    def baseline(self) -> float | None:
        """The percentile that rewards are held against; `None` while nothing was noted."""
        if self.rule.q is None or not self._means:
            return None
        return percentile(list(self._means), self.rule.q)

    def state(self) -> dict[str, Json]:
        """All there is to it, as JSON; `restore` takes it."""
        return {
            "rows": [{"step": kept.step, "row": to_json(kept.row)} for kept in self._rows.values()],
            "means": list[Json](self._means),
        }

    def restore(self, state: Any) -> None:
        """Go on from what `state` gave. Raises `StoreError` when a row is none."""
        self._means = deque(map(float, state["means"]), maxlen=self.rule.history)
        self._rows = {}
        for one in state["rows"]:
            row = from_json(Row, one["row"])
            self._rows[_key(row)] = _Kept(int(one["step"]), row)

    def _pay(self, row: Row) -> Row | None:
        """The row with its advantages of now; `None` when it is not worth imitating any more."""
        base = self.baseline()
        if base is None:
            return row
        worth = (row.reward or 0.0) - base
        if worth <= 0:
            return None
        return replace(row, advantages=tuple(worth if one else 0.0 for one in row.sampled))


def _key(row: Row) -> str:
    return content_id("row", row.episode, row.segments, row.sampled)


def _check(row: Row) -> None:
    if row.reward is None or not row.logprobs or len(row.advantages) != len(row.segments):
        raise UsageError(
            f"a row of episode `{row.episode}` lacks its reward, log-probs or advantages; "
            "only rows for methods that use ratios can be replayed"
        )
