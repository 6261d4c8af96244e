"""The real scheduler on a clock of the test's: a file of one double, which sleeping moves on.

    python day_process.py FOLDER HOME CLOCK MOST

Everything but the clock is what `agentloop schedule FOLDER --home HOME` does.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
import sys
from pathlib import Path

from agentloop.cli import _QUIET
from agentloop.cli.schedule import SessionCycles
from agentloop.cli.session import Session
from agentloop.cli.stop import Stopped, until_stopped
from agentloop.schedule import Calendar, Every, Scheduler
from agentloop.schedule.run import PAUSE

HOUR = 3600.0


class FileClock:
    """Unix seconds in a file that the test maps as well."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8)

    def now(self) -> float:
        """What the file says."""
        return float(struct.unpack("d", self._map[:8])[0])

    def set(self, seconds: float) -> None:
        """From now on."""
        self._map[:8] = struct.pack("d", seconds)

    async def sleep(self, seconds: float) -> None:
        """Time passes at once, but for a little after a fault, which real seconds mend."""
        await asyncio.sleep(0.2 if seconds >= PAUSE else 0.002)
        self.set(self.now() + seconds)


def say(text: str) -> None:
    """One line on stderr, whole."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main() -> None:
    """Run slots until `MOST` ended."""
    import os

    os.environ.update(_QUIET)
    folder, home, clock, most = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])

    def open_session(seed: int) -> Session:
        return Session.open(folder, home, None, None, None, seed, None, as_json=True)

    session = open_session(0)
    with session.archive as archive:
        name = session.loaded.name
        scheduler = Scheduler(
            log=archive.log, workflow=name, calendar=Calendar(Every(HOUR), "all"),
            cycles=SessionCycles(open_session, archive, name), clock=FileClock(clock), tell=say,
        )  # fmt: skip
        try:
            until_stopped(scheduler.run(most))
        except Stopped:
            say("stopped")


if __name__ == "__main__":
    main()
