"""What conversations say of a canary: the log in, one reward for each conversation out.

Goes in: episodes of served conversations and their scores. Comes out: (side, reward), in the order
in which they settled. A conversation counts once, with the first thing that settles it: feedback;
a failure, which is a 0; the workflow's own live reward when no feedback came for a while. Decision:
what settles when follows from the log's rows and their order alone, its clock included, so that
what was counted never changes, whoever reads it and whenever.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import replace
from typing import Any

from agentloop.gates.live import Side
from agentloop.live.conversations import conversation_of, unit
from agentloop.records import Json, record
from agentloop.store.archive import Archive
from agentloop.store.exchange import foreign
from agentloop.store.query import Entry, Query

FEEDBACK = "feedback"
"""The reward spec of what clients say."""
LIVE = "live"
"""The reward spec of `serve.reward`."""
OTHERS = frozenset({"cancelled", "budget"})
"""Failures that say nothing of a bundle: the client went away, the money is spent."""


@record
class Canary:
    """One that is running."""

    bundle: str
    champion: str
    since: int
    """Scores after this entry of the log count: the later of the two aliases' last moves."""
    name: str
    """Of the alias row that began it."""
    champion_name: str
    """Of the champion's alias row."""


_Turn = tuple[str, Side]
"""What the conversation of an episode counts as, and its side."""


class Signals:
    """The rewards of a workflow's canary; asked again, it reads only what came since."""

    def __init__(self, archive: Archive, workflow: str, patience: float) -> None:
        """`patience` are the seconds that feedback has before a live reward counts instead."""
        self._archive, self._workflow, self._patience = archive, workflow, patience
        self._foreign: dict[str, bool] = {}
        self._canary: Canary | None = None
        self._read = 0

    def of(self, canary: Canary) -> list[tuple[Side, float]]:
        """One reward for each conversation that began when its bundle was chosen of these two, in
        the order in which they settled."""
        if canary != self._canary:
            self._begin(canary)
        log = self._archive.log
        end = max((entry.seq for entry in log.read(Query(limit=1, newest=True))), default=0)
        new = Query(scope=self._workflow, since_seq=self._read, until=end)
        episodes = log.read(replace(new, kinds=("episode",), purpose="serve"))
        scores = log.read(replace(new, kinds=("score",)))
        for entry in heapq.merge(episodes, scores, key=lambda one: one.seq):
            if entry.kind == "episode":
                self._episode(entry)
            else:
                self._score(entry)
            self._read = entry.seq
        self._read = end
        return self._rewards

    def _begin(self, canary: Canary) -> None:
        self._canary, self._read = canary, canary.since
        self._clock = -math.inf
        self._turns: dict[str, _Turn] = {}
        self._early: dict[str, float] = {}  # feedback for what is not logged yet
        self._waiting: list[tuple[float, int, _Turn, float]] = []  # live rewards, as a heap
        self._settled: set[str] = set()
        self._rewards: list[tuple[Side, float]] = []

    def _episode(self, entry: Entry) -> None:
        turn = self._turn(entry.body)
        if turn is None:
            return
        self._pass(entry.at)
        self._turns[entry.key] = turn
        body: Any = entry.body
        failure = body.get("failure")
        if (said := self._early.pop(entry.key, None)) is not None:
            self._settle(turn, said)
        elif failure and failure["reason"] not in OTHERS:
            self._settle(turn, 0.0)

    def _score(self, entry: Entry) -> None:
        body: Any = entry.body
        if body["spec"] not in (FEEDBACK, LIVE):
            return
        value, turn = float(body["score"]["value"]), self._turns.get(body["episode"])
        if turn is None:
            if body["spec"] == FEEDBACK:
                self._early.setdefault(body["episode"], value)
            return
        self._pass(entry.at)
        if body["spec"] == FEEDBACK:
            self._settle(turn, value)
        else:
            due = self._clock + self._patience
            heapq.heappush(self._waiting, (due, entry.seq, turn, value))

    def _turn(self, body: Json) -> _Turn | None:
        """`None` for what is no conversation of this home's that could have got either bundle: an
        imported one, a fork, one that began before the canary or the champion did."""
        episode: Any = body
        assert self._canary is not None
        sides: dict[str, Side] = {self._canary.champion: "champion", self._canary.bundle: "canary"}
        chosen_of = {side: bundle for bundle, side in sides.items()}
        if episode["task"].get("data") != chosen_of or episode["bundle"] not in sides:
            return None
        if (episode.get("setup") or {}).get("parent") or self._imported(episode["run"]):
            return None
        return unit(conversation_of(episode["task"]["id"])), sides[episode["bundle"]]

    def _imported(self, run: str) -> bool:
        if run not in self._foreign:
            self._foreign[run] = foreign(self._archive.log, run)
        return self._foreign[run]

    def _pass(self, at: float) -> None:
        """The log's clock goes on, and never back."""
        self._clock = max(self._clock, at)
        while self._waiting and self._waiting[0][0] < self._clock:
            _, _, turn, value = heapq.heappop(self._waiting)
            self._settle(turn, value)

    def _settle(self, turn: _Turn, value: float) -> None:
        counted_as, side = turn
        if counted_as not in self._settled:
            self._settled.add(counted_as)
            self._rewards.append((side, value))
