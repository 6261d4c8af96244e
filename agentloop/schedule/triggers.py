"""What starts a cycle beside the clock: enough new trajectories, or a live reward that fell.

In: the log since the last cycle began, in its own order. Out: the cause in a few words, or none.
No clock is asked. Live are the episodes of purpose `serve`, whoever asked for them; their scores
may come late, and each counts in the order in which its latest score came.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentloop.gates.betting import wealth
from agentloop.records import Score
from agentloop.store.log import Log
from agentloop.store.query import Query
from agentloop.trajectories.codec import from_json

LIVE = 2000
"""The latest so many live episodes are looked at for a drift."""


@dataclass(frozen=True)
class Triggers:
    """Those of a workflow; `None` is not asked for."""

    trajectories: int | None = None
    drift: float | None = None

    def __bool__(self) -> bool:
        return self.trajectories is not None or self.drift is not None

    def cause(self, log: Log, workflow: str, since: int) -> str:
        """Why a cycle should start now, empty when it should not. `since` is where in the log the
        last cycle began."""
        if self.trajectories is not None:
            live = Query(kinds=("episode",), scope=workflow, purpose="serve", since_seq=since)
            if (new := len(log.chosen(live))) >= self.trajectories:
                return f"{new} new trajectories"
        if self.drift is not None:
            before, recent = live_rewards(log, workflow, since)
            if fell(before, recent, self.drift):
                pairs = min(len(before), len(recent))
                old, new_mean = sum(before[-pairs:]) / pairs, sum(recent[:pairs]) / pairs
                return f"the live reward fell from {old:.2f} to {new_mean:.2f}"
        return ""


def live_rewards(log: Log, workflow: str, since: int) -> tuple[list[float], list[float]]:
    """Rewards in [0, 1] of live episodes, scored before and after the place `since` in the log."""
    live = Query(kinds=("episode",), scope=workflow, purpose="serve", newest=True, limit=LIVE)
    scored = sorted(
        (score.seq, _value(score.body)) for _, score in log.scored(live) if score is not None
    )
    return [v for seq, v in scored if seq <= since], [v for seq, v in scored if seq > since]


def fell(before: list[float], recent: list[float], alpha: float) -> bool:
    """Whether the mean reward is lower than it was. Each recent one is compared with one of before,
    the latest first, each used once; when both have one mean, this ever becomes true with a chance
    of at most `alpha`, however often it is asked (`gates.betting`)."""
    pairs = [old - new for old, new in zip(reversed(before), recent, strict=False)]
    return bool(pairs) and max(wealth(pairs)) >= 1 / alpha


def _value(body: object) -> float:
    assert isinstance(body, dict)
    return from_json(Score, body["score"]).value
