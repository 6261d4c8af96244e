"""The scheduler: under a lease, one slot after the other, for as long as it is let.

In: a calendar, triggers, and `Cycles`, which runs one. Out: cycles, and slots in the log that say
how each ended. A slot that was begun is gone on with before anything else, so a crash, a stop or a
full disk costs time and no cycle; a scheduler that finds another at work stands by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from agentloop.errors import AgentLoopError, ModelError, ServerError, StoreError
from agentloop.records import record
from agentloop.schedule.calendar import MOST, Calendar
from agentloop.schedule.clock import Clock, SystemClock
from agentloop.schedule.slots import Slot, Slots, last_cycle, seed_of, slot_name, unused
from agentloop.schedule.triggers import Triggers
from agentloop.store.held import LEASE_SECONDS, leased
from agentloop.store.leases import LeaseHeld, LeaseLost
from agentloop.store.log import Log
from agentloop.store.query import Fence

NAP = 30.0
"""Seconds until the clock is read and triggers are asked again, at most."""
PAUSE = 60.0
"""Seconds before a slot that failed for a passing reason is tried again."""
TRIES = 3
"""So often at least, and until the next slot is due,"""
PATIENCE = 86400.0
"""or for so many seconds where the calendar plans none."""


@record
class Outcome:
    """How a slot's cycle ended."""

    state: str
    """`promoted`, `kept` or `failed`."""
    bundle: str = ""
    """What serves after it."""
    reason: str = ""


class Cycles(Protocol):
    """What is run on schedule."""

    def refusal(self) -> str:
        """Why no cycle may begin now (the month's budget); empty when one may."""
        ...

    def open(self, seed: int) -> str:
        """The id of a cycle to begin with this seed. Nothing is written."""
        ...

    async def run(self, slot: Slot, fence: Fence) -> Outcome:
        """Run the slot's cycle, or finish it; what it promotes carries the fence."""
        ...


def _quiet(text: str) -> None:
    """Tell nobody."""


@dataclass
class Scheduler:
    """Runs the cycles of one workflow and home."""

    log: Log
    workflow: str
    calendar: Calendar
    cycles: Cycles
    triggers: Triggers = Triggers()
    seed: int = 0
    clock: Clock = field(default_factory=SystemClock)
    tell: Callable[[str], None] = _quiet
    lease: float = LEASE_SECONDS
    """Seconds without a sign of life after which another scheduler takes over."""
    pause: float = PAUSE

    @property
    def name(self) -> str:
        """Of the lease."""
        return f"schedule/{self.workflow}"

    async def run(self, most: int | None = None, *, stay: bool = True) -> int:
        """Run slots until `most` cycles ended, or, without `stay`, as long as some are due; how
        many ended. While another scheduler works this one waits; without `stay` it raises
        `LeaseHeld`."""
        done = 0
        while most is None or done < most:
            try:
                async with leased(
                    self.log, self.name, self.lease, waiting=self._stand_by if stay else None
                ) as fence:
                    shift = Shift(self, fence)
                    while most is None or done < most:
                        slot = shift.next()
                        if slot is not None:
                            await shift.finish(slot)
                            done += 1
                        elif stay:
                            await shift.nap()
                        else:
                            return done
            except LeaseLost as error:
                self.tell(f"another scheduler took over ({error}); this one stands by")
            except (StoreError, OSError) as error:
                if not stay:
                    raise
                self.tell(f"{error}; tried again in {self.pause:g} s")
                await self.clock.sleep(self.pause)
        return done

    def _stand_by(self, why: str) -> None:
        self.tell(f"standing by: {why}")


class Shift:
    """A scheduler's work under one lease; raises `LeaseLost` once another holds it."""

    def __init__(self, of: Scheduler, fence: Fence) -> None:
        self._of, self._fence = of, fence
        self._slots = Slots(of.log, of.workflow, fence)
        rule = of.calendar.rule
        start = self._slots.follow(rule, of.clock.now()) if rule else 0.0
        self._calendar = of.calendar.anchored(start)

    def next(self) -> Slot | None:
        """The slot to run now: an unfinished one, one that is due, or a trigger's."""
        of, slots = self._of, self._slots
        unfinished = slots.unfinished()
        if unfinished is not None:
            of.tell(f"{unfinished.name}: going on with {unfinished.cycle}")
            return unfinished
        now = of.clock.now()
        name, cause = self._due(now)
        if not name:
            name, cause = self._triggered(now)
        if not name:
            return None
        refusal = of.cycles.refusal()
        if refusal:
            of.tell(f"{name}: skipped: {refusal}")
            slots.end(name, "skipped", reason=refusal, cause=cause)
            return None
        seed = seed_of(name, of.seed)
        slot = Slot(name=name, cycle=of.cycles.open(seed), seed=seed, cause=cause)
        slots.begin(slot)
        of.tell(f"{name}: {slot.cycle} begins ({cause})")
        return slot

    async def finish(self, slot: Slot) -> None:
        """Run the slot's cycle to its end, whatever that is, and note it."""
        of, began, tries = self._of, self._of.clock.now(), 0
        outcome: Outcome | None = None
        while outcome is None:
            try:
                outcome = await of.cycles.run(slot, self._fence)
            except (LeaseHeld, LeaseLost) as error:
                of.log.renew(*self._fence, of.lease)  # was it this scheduler's own, it raises that
                # Another runs a cycle by hand: this one waits for as long as that takes.
                of.tell(f"{slot.name}: {error}; tried again in {of.pause:g} s")
                await of.clock.sleep(of.pause)
            except (StoreError, OSError, ModelError, ServerError) as error:
                tries += 1
                if tries >= TRIES and self._given_up(began):
                    outcome = Outcome(state="failed", reason=f"tried {tries} times; {error}")
                else:
                    of.tell(f"{slot.name}: {error}; tried again in {of.pause:g} s")
                    await of.clock.sleep(of.pause)
            except AgentLoopError as error:
                outcome = Outcome(state="failed", reason=str(error))
            except Exception as error:  # of a part of the workflow: the next cycle may do without
                outcome = Outcome(state="failed", reason=f"{type(error).__name__}: {error}")
        self._slots.end(
            slot.name, outcome.state, cycle=slot.cycle, bundle=outcome.bundle,
            reason=outcome.reason, cause=slot.cause,
        )  # fmt: skip
        why = f" ({outcome.reason})" if outcome.reason else ""
        of.tell(f"{slot.name}: {slot.cycle} {outcome.state}{why}")

    async def nap(self) -> None:
        """Until the next planned moment, but not for long: clocks are set, and triggers happen."""
        now = self._of.clock.now()
        planned = self._calendar.next(now)
        await self._of.clock.sleep(min([NAP, *(moment - now for moment in planned)]))

    def _due(self, now: float) -> tuple[str, str]:
        """Name and cause of the planned slot to run now; those it was too late for are noted."""
        if not self._calendar.rule:
            return "", ""
        since = self._slots.since(now)
        due = unused(self._calendar.due(since, now), self._slots)
        chosen, given_up = self._calendar.choose(due, now)
        if given_up:
            first, last = slot_name(given_up[0]), slot_name(given_up[-1])
            at_least = "at least " if len(given_up) >= MOST else ""
            count = f"{at_least}{len(given_up)} slot{'s' if len(given_up) > 1 else ''}"
            self._of.tell(f"missed: {count}, the last at {last}")
            self._slots.end(last, "missed", at_least=len(given_up), since=first)
        return ("", "") if chosen is None else (slot_name(chosen), self._calendar.rule)

    def _triggered(self, now: float) -> tuple[str, str]:
        """Name and cause of the slot that a trigger starts. One such slot follows one cycle; one
        that was skipped, or failed before its own cycle began, is followed by one the next day."""
        of = self._of
        if not of.triggers:
            return "", ""
        since = last_cycle(of.log, of.workflow)
        name = f"{slot_name(now)[:10]}/after-{since}"
        if self._slots.taken(name):
            return "", ""
        cause = of.triggers.cause(of.log, of.workflow, since)
        return (name, cause) if cause else ("", "")

    def _given_up(self, began: float) -> bool:
        planned = self._calendar.next(began)
        return (planned[0] if planned else began + PATIENCE) <= self._of.clock.now()
