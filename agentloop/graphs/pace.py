"""Who goes on when many rollouts share one processor: a few at a time, in the order they came.

An event loop gives every task that can run an equal slice. Rollouts whose replies come together
then finish their turns together and ask together again, so each waits for all the others in every
turn. Let through a few at a time they spread out once, and later replies find nobody before them.
Places are for the processor alone: once it has nothing to do, whoever has a place waits for
something else (a tool, a disk), all places are free again, and nobody has waited for nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque

PLACES = 16
"""As many as share a commit of the journal well: 512 rollouts behind a model of 2 s took 25.2, 25.4
and 25.7 s with 8, 16 and 32 of them, and 26.4 to 26.7 s without (24 s is the least)."""
QUIET = 50e-6
"""Seconds within which a round of an event loop has run nothing but our look at its clock (some
15 us); a step of a graph takes longer."""
LONGEST = 0.05
"""Seconds after which a processor that is never quiet, or never so fast, counts as free all the
same: more than a turn takes while all places are taken (some 30 ms)."""


class Pace:
    """Places for rollouts that are not waiting for their model; lives on one event loop."""

    def __init__(
        self, places: int = PLACES, quiet: float = QUIET, longest: float = LONGEST
    ) -> None:
        self._places, self._quiet, self._longest = places, quiet, longest
        self.round = 0
        """Grows when all places become free at once; a place of an earlier round is none."""
        self._taken = 0
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._watching = False

    async def take(self) -> int:
        """Wait for a place, behind those that came before: the round that it is of."""
        if self._taken < self._places and not self._waiting:
            self._taken += 1
            return self.round
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[int] = loop.create_future()
        self._waiting.append(turn)
        if not self._watching:
            self._watching = True
            loop.call_soon(self._watch, loop, loop.time(), loop.time())
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was given one meanwhile
                self.give_back(turn.result())
            raise

    def give_back(self, of: int) -> None:
        """Pass a place of the round `of` on to the next."""
        if of == self.round:
            self._taken -= 1
            self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._taken < self._places:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(self.round)
                self._taken += 1

    def _watch(self, loop: asyncio.AbstractEventLoop, before: float, began: float) -> None:
        """Once a round of the loop, while somebody waits: did nothing else run in it?"""
        now = loop.time()
        if now - before < self._quiet or now - began > self._longest:
            self.round, self._taken = self.round + 1, 0
            self._let_in()
            began = now
        if self._waiting:
            loop.call_soon(self._watch, loop, loop.time(), began)
        else:
            self._watching = False


class Place:
    """One rollout's: it has one at most, while it does not wait for its model."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._of: int | None = None

    async def enter(self) -> None:
        """Go on when it is this rollout's turn."""
        if self._of is None:
            of = await self._pace.take()
            self.leave()  # the place of another of its calls, which came in meanwhile
            self._of = of

    def leave(self) -> None:
        """Let the next one go on."""
        if self._of is not None:
            of, self._of = self._of, None
            self._pace.give_back(of)
