"""For the scheduler's tests: a clock that is set by hand, and cycles that do next to nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from agentloop.schedule import Outcome, Slot
from agentloop.store.log import Log
from agentloop.store.query import Draft, Fence


@dataclass
class SetClock:
    """Sleeping moves `time`, and `jumps` do: (after so many elapsed seconds, by so many)."""

    time: float
    jumps: list[tuple[float, float]] = field(default_factory=list)
    until: float = float("inf")
    """The elapsed seconds, jumps not counted, after which sleeping is cancelled."""
    elapsed: float = 0.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.time += seconds
        self.elapsed += seconds
        while self.jumps and self.elapsed >= self.jumps[0][0]:
            self.time += self.jumps.pop(0)[1]
        await asyncio.sleep(0)
        if self.elapsed >= self.until:
            raise asyncio.CancelledError

    def jump(self, seconds: float) -> None:
        self.time += seconds


def nothing(slot: Slot) -> Outcome:
    """A cycle that changes nothing."""
    return Outcome(state="kept", bundle="bundle-0")


@dataclass
class StubCycles:
    """Cycles that leave the two marks a real one does: a `cycle` row and a fenced promotion."""

    log: Log
    workflow: str = "w"
    body: Callable[[Slot], Outcome] = nothing
    refused: str = ""
    ran: list[str] = field(default_factory=list)
    clock: SetClock | None = None
    takes: float = 0.0
    """Seconds on the clock."""

    def refusal(self) -> str:
        return self.refused

    def open(self, seed: int) -> str:
        return f"cycle-{seed}"

    async def run(self, slot: Slot, fence: Fence) -> Outcome:
        self.ran.append(slot.name)
        scope = self.workflow
        self.log.append([Draft(kind="cycle", key=slot.cycle, body={}, scope=scope)])
        outcome = self.body(slot)
        if self.clock is not None:
            self.clock.time += self.takes
            self.clock.elapsed += self.takes
        done = Draft(kind="promotion", key=slot.cycle, body={}, scope=scope)
        self.log.append([done], fence=fence)
        return outcome
