"""Who goes on when many rollouts share one processor: a few at a time, in the order they came.

An event loop gives every task that can run an equal slice. Rollouts whose replies come together
then finish their turns together and ask together again, so each waits for all the others in every
turn. Let through one after the other they spread out once, and later replies find nobody before
them. A place held too long is given to the next all the same: whoever holds it waits for something
else (a tool, a service of its own), so nobody is ever stopped by it.
"""

from __future__ import annotations

import asyncio
from collections import deque

PLACES = 16
"""As many as share a commit of the journal well: 512 rollouts behind a model of 2 s took 25.2, 25.4
and 25.7 s with 8, 16 and 32 of them, and 26.4 to 26.7 s without (24 s is the least)."""
SECONDS = 0.05
"""Longer than a turn takes while all places are taken (some 30 ms), and short enough to let as many
turns through in a second as a processor can run."""


class Pace:
    """Places for rollouts that are not waiting for their model; lives on one event loop."""

    def __init__(self, places: int = PLACES, seconds: float = SECONDS) -> None:
        self._free, self.seconds = places, seconds
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Wait for a place, behind those that came before."""
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was given one meanwhile
                self.give_back()
            raise

    def give_back(self) -> None:
        """Pass a place on to the next."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Place:
    """One rollout's: it has one at most, while it does not wait for its model."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._until: asyncio.TimerHandle | None = None

    async def enter(self) -> None:
        """Go on when it is this rollout's turn."""
        if self._until is None:
            await self._pace.take()
            self.leave()  # the place of another of its calls, which came in meanwhile
            later = asyncio.get_running_loop().call_later
            self._until = later(self._pace.seconds, self.leave)

    def leave(self) -> None:
        """Let the next one go on."""
        if self._until is not None:
            self._until.cancel()
            self._until = None
            self._pace.give_back()
