"""What starts a cycle beside the clock: enough new trajectories, or a live reward that fell.

In: the log since the last cycle began, in its own order. Out: the cause in a few words, or none.
No clock is asked. What was imported, and forks of recorded rollouts, are nobody's use. A live
reward is what a client says of a conversation, or `serve.reward`; each conversation has one, the
first that came, so that grading the log anew changes nothing and many turns with one person are no
more than one opinion.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agentloop.gates.betting import wealth
from agentloop.live.signals import FEEDBACK, LIVE
from agentloop.records import content_id
from agentloop.store.exchange import foreign
from agentloop.store.log import Log
from agentloop.store.query import Entry, Query

LATEST = 2000
"""So many episodes of use are looked at for a drift."""
_SPECS = [content_id("spec", spec) for spec in (FEEDBACK, LIVE)]


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
            if len(log.chosen(live)) >= self.trajectories:  # else no episode need be read
                new = sum(1 for _ in _of_use(log, live))
                if new >= self.trajectories:
                    return f"{new} new trajectories"
        if self.drift is not None:
            before, recent = live_rewards(log, workflow, since)
            if fell(before, recent, self.drift):
                pairs = min(len(before), len(recent))
                old, new_mean = sum(before[-pairs:]) / pairs, sum(recent[:pairs]) / pairs
                return f"the live reward fell from {old:.2f} to {new_mean:.2f}"
        return ""


def live_rewards(log: Log, workflow: str, since: int) -> tuple[list[float], list[float]]:
    """Rewards in [0, 1] of conversations, those that came before and after the place `since` in the
    log, in the order in which they came."""
    live = Query(kinds=("episode",), scope=workflow, purpose="serve", newest=True, limit=LATEST)
    first: dict[str, tuple[int, float]] = {}
    for entry in _of_use(log, live):
        body: Any = entry.body
        task = body["task"]["id"]
        talk = task.rpartition("/")[0] or task  # of `serve/NAME/TURN`
        for seq, value in _scores(log, entry.key):
            first[talk] = min(first.get(talk, (seq, value)), (seq, value))
    found = sorted(first.values())
    return [v for seq, v in found if seq <= since], [v for seq, v in found if seq > since]


def fell(before: list[float], recent: list[float], alpha: float) -> bool:
    """Whether the mean reward is lower than it was. Each recent one is compared with one of before,
    the latest first, each used once; when both have one mean, this ever becomes true with a chance
    of at most `alpha`, however often it is asked (`gates.betting`)."""
    pairs = [old - new for old, new in zip(reversed(before), recent, strict=False)]
    return bool(pairs) and max(wealth(pairs)) >= 1 / alpha


def _of_use(log: Log, query: Query) -> Iterator[Entry]:
    """Those of the episodes that came from use here."""
    imported: dict[str, bool] = {}
    for entry in log.read(query):
        body: Any = entry.body
        run = body["run"]
        if run not in imported:
            imported[run] = foreign(log, run)
        if not imported[run] and not body.get("setup", {}).get("parent"):
            yield entry


def _scores(log: Log, episode: str) -> Iterator[tuple[int, float]]:
    """Where in the log each live score of an episode stands, and its value."""
    for spec in _SPECS:
        for key in log.keys("score", f"{episode}/{spec}/"):
            entry = log.get("score", key)
            if entry is not None:
                body: Any = entry.body
                yield entry.seq, float(body["score"]["value"])
