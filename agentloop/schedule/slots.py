"""Slots in the log: what was planned, begun and ended, under names that make each happen once.

In: a log, a workflow and the scheduler's fence. Out: the slot to go on with, and rows
`slot_begun` and `slot_ended` of the key `WORKFLOW/2026-11-23T03:00:00Z`. A planned slot is named by
its planned time, whatever the clock says when it is run; one that a trigger starts by the cycle
that it comes after, and by the day, so that it is tried again where it came to no cycle. No name
depends on who gives it. All rows carry the fence, so a scheduler that was stopped past its lease
writes none.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from agentloop.records import Json, record
from agentloop.schedule.calendar import iso
from agentloop.store.log import Log
from agentloop.store.query import Draft, Entry, Fence, Query

BEGUN, ENDED, STARTED = "slot_begun", "slot_ended", "schedule"


@record
class Slot:
    """One cycle that was begun at a planned moment or by a trigger."""

    name: str
    """Within its workflow: a planned time, or `2026-11-23/after-123`."""
    cycle: str
    seed: int
    cause: str
    """The clock's rule, or what the trigger saw."""


def slot_name(moment: float) -> str:
    """The name of a planned slot."""
    return iso(moment)


def seed_of(name: str, base: int) -> int:
    """The seed of a slot's cycle, in [0, 2^31): its own, and the same for whoever runs it."""
    digest = hashlib.blake2b(f"{base}/{name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) >> 1


class Slots:
    """The slots of one workflow as its log has them now, and as this holder of the lease adds to
    them. Writing raises `LeaseLost`, or `StoreError` on a full disk."""

    def __init__(self, log: Log, workflow: str, fence: Fence) -> None:
        self._log, self._workflow, self._fence = log, workflow, fence
        prefix = f"{workflow}/"
        self._ended = {key.removeprefix(prefix) for key in log.keys(ENDED, prefix)}
        self._begun = {key.removeprefix(prefix) for key in log.keys(BEGUN, prefix)}
        self._planned = sorted(filter(None, map(_moment, self._ended)))
        self._rule, self._floor = "", 0.0

    def unfinished(self) -> Slot | None:
        """The slot that was begun and not ended, by this process or another; the first of them."""
        open_ones = self._begun - self._ended
        found = [self._log.get(BEGUN, f"{self._workflow}/{name}") for name in open_ones]
        entries = sorted((one for one in found if one is not None), key=lambda one: one.seq)
        return _slot(entries[0], self._workflow) if entries else None

    def taken(self, name: str) -> bool:
        """Whether it ended: it is not begun again."""
        return name in self._ended

    def follow(self, rule: str, now: float) -> float:
        """Follow this rule; when it was first followed here, which is where an interval begins."""
        self._rule = f"{self._workflow}#{rule}"
        first = started_at(self._log, self._workflow, rule)
        if first is None:
            first = float(math.floor(now))
            self._write(STARTED, self._rule, {"at": first})
        later = [key.rpartition("@")[2] for key in self._log.keys(STARTED, f"{self._rule}@")]
        self._floor = min([first, *map(float, later)])
        return first

    def since(self, now: float) -> float:
        """From when on planned moments may be due: after the last slot that ended and was planned
        before `now` (not the last of all: those after `now` are of a clock that was set back
        since), and not before the rule was followed here. Where the clock was ahead when that was
        noted, the rule counts as followed from `now` on, and that is noted too."""
        if now < self._floor:
            self._floor = float(math.floor(now))
            self._write(STARTED, f"{self._rule}@{self._floor:.0f}", {"at": self._floor})
        at = bisect_right(self._planned, now)
        return max([self._floor - 0.001, *self._planned[at - 1 : at]])

    def begin(self, slot: Slot) -> None:
        """Note that it is about to run."""
        body: dict[str, Json] = {"cycle": slot.cycle, "seed": slot.seed, "cause": slot.cause}
        self._write(BEGUN, f"{self._workflow}/{slot.name}", body)
        self._begun.add(slot.name)

    def end(self, name: str, state: str, **about: Json) -> None:
        """Note how it ended, for good."""
        self._write(ENDED, f"{self._workflow}/{name}", {"state": state, **about})
        self._ended.add(name)
        moment = _moment(name)
        if moment is not None and moment not in self._planned[-1:]:
            self._planned.insert(bisect_right(self._planned, moment), moment)

    def _write(self, kind: str, key: str, body: Json) -> None:
        draft = Draft(kind=kind, key=key, body=body, scope=self._workflow)
        self._log.append([draft], fence=self._fence)


def started_at(log: Log, workflow: str, rule: str) -> float | None:
    """When a rule was first followed here; `None` when it never was."""
    entry = log.get(STARTED, f"{workflow}#{rule}")
    body: Any = entry.body if entry else None
    return None if body is None else float(body["at"])


def last_cycle(log: Log, workflow: str) -> int:
    """The place in the log where the latest cycle of the workflow began; 0 before the first."""
    newest = Query(kinds=("cycle",), scope=workflow, newest=True, limit=1)
    return next((entry.seq for entry in log.read(newest)), 0)


def history(log: Log, workflow: str, n: int, *, begun: bool = False) -> list[dict[str, Json]]:
    """The latest `n` slots, latest first: name, cause, cycle, state (`running` while unfinished)
    and what else is known of each. With `begun` those only that had a cycle."""
    listed: dict[str, dict[str, Json]] = {}
    for kind in (BEGUN, ENDED):
        query = Query(kinds=(kind,), prefix=f"{workflow}/", newest=True)
        for entry in log.read(replace(query, limit=None if begun else n + 1)):
            name = entry.key.removeprefix(f"{workflow}/")
            body: Any = entry.body
            if begun and kind == ENDED and name not in listed:
                continue
            known = listed.setdefault(name, {"slot": name, "seq": entry.seq, "state": "running"})
            known.update(body)
    latest = sorted(listed.values(), key=_seq, reverse=True)[:n]
    return [{key: value for key, value in one.items() if key != "seq"} for one in latest]


def unused(due: Sequence[float], slots: Slots) -> list[float]:
    """Those planned moments that no slot has ended at, by name: a moment that was read back from a
    name may differ from the planned one in its last bit."""
    return [moment for moment in due if not slots.taken(slot_name(moment))]


def _seq(known: dict[str, Json]) -> int:
    seq = known["seq"]
    return seq if isinstance(seq, int) else 0


def _slot(entry: Entry, workflow: str) -> Slot:
    body: Any = entry.body
    name = entry.key.removeprefix(f"{workflow}/")
    return Slot(name=name, cycle=body["cycle"], seed=body["seed"], cause=body["cause"])


def _moment(name: str) -> float | None:
    """The planned time that a name says; `None` of a trigger's."""
    if "/" in name:
        return None
    return datetime.fromisoformat(name).timestamp()
