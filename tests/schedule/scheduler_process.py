"""A scheduler in a process of its own, whose cycles stop where the test can stop the process.

    python scheduler_process.py HOME SLOTS LEASE

A cycle says `in` and the slot's name on stdout and, when it is let on by the file `go-NAME-PID` in
the home, promotes under the fence unless that was done; what it was refused it says as well.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from agentloop.schedule import Calendar, Every, Outcome, Scheduler, Slot
from agentloop.store.leases import LeaseLost
from agentloop.store.log import Log
from agentloop.store.query import Draft, Fence


def say(*words: str) -> None:
    """One line, written whole."""
    os.write(1, (" ".join(words) + "\n").encode())


class Watched:
    """Cycles that wait to be let on."""

    def __init__(self, log: Log, home: Path) -> None:
        self.log, self.home = log, home

    def refusal(self) -> str:
        return ""

    def open(self, seed: int) -> str:
        return f"cycle-{seed}"

    async def run(self, slot: Slot, fence: Fence) -> Outcome:
        say("in", slot.name)
        go = self.home / f"go-{slot.name}-{os.getpid()}"
        try:
            while not go.exists():
                await asyncio.sleep(0.005)
        finally:  # also one that has just learned that it lost its lease tries to write
            self._promote(slot, fence)
        return Outcome(state="kept")

    def _promote(self, slot: Slot, fence: Fence) -> None:
        try:
            if not self.log.keys("promotion", slot.name):
                key = f"{slot.name}/{os.getpid()}"  # of its own, so that two would be seen
                self.log.append([Draft(kind="promotion", key=key, body={})], fence=fence)
        except LeaseLost:
            say("refused", slot.name)
            raise


def main() -> None:
    home, slots, lease = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    log = Log(home / "log.db")
    scheduler = Scheduler(
        log=log, workflow="w", calendar=Calendar(Every(0.02), "once"), lease=lease,
        cycles=Watched(log, home), tell=lambda text: say("told", text), pause=0.05,
    )  # fmt: skip
    say("ready")
    try:
        asyncio.run(scheduler.run(slots))
    finally:
        log.close()


if __name__ == "__main__":
    main()
