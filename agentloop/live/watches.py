"""What a server does besides answering: follow the aliases, judge the canary.

Goes in: the lineup and the log. Comes out: another lineup, and sentences about it. Decision: a log
that cannot be read for a while is told once and looked at again, since what serves goes on serving.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agentloop.errors import AgentLoopError
from agentloop.lanes.bench import Bench
from agentloop.live import canary
from agentloop.live.lineup import Lineup, Say
from agentloop.live.signals import Signals
from agentloop.workflows.schema import Serve

LOOK = 0.5
"""Seconds between two looks at the aliases (0.1 ms of CPU each)."""
JUDGE = 5.0
"""Seconds between two looks at a canary's rewards."""


class Watches:
    """Both, from `start` to `stop`."""

    def __init__(self, bench: Bench, settings: Serve, lineup: Lineup, *, say: Say) -> None:
        self._bench, self._settings, self._lineup, self._say = bench, settings, lineup, say
        self._signals = Signals(bench.archive, bench.workflow, settings.patience)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, tidy: Callable[[], None], broken: asyncio.Future[None]) -> None:
        """`tidy` is called at every look; `broken` gets what ends a watch by itself, a fault of
        ours, which must not go unseen."""

        async def follow() -> None:
            tidy()
            await self._lineup.refresh()

        def ended(task: asyncio.Task[None]) -> None:
            error = None if task.cancelled() else task.exception()
            if error is not None and not broken.done():
                broken.set_exception(error)

        self._tasks = [
            asyncio.create_task(self._repeat(lambda: LOOK, follow, "the aliases")),
            asyncio.create_task(self._repeat(lambda: JUDGE, self._judge, "the canary's rewards")),
        ]
        for task in self._tasks:
            task.add_done_callback(ended)

    async def stop(self) -> None:
        """End both."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _repeat(
        self, every: Callable[[], float], look: Callable[[], Awaitable[None]], what: str
    ) -> None:
        said = ""
        while True:
            await asyncio.sleep(every())
            try:
                await look()
                said = ""
            except (AgentLoopError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    self._say(f"{what} cannot be followed: {said}")

    async def _judge(self) -> None:
        """Promote or end the canary as soon as its rewards say so."""
        bench = self._bench
        decided = await asyncio.to_thread(
            canary.decide, bench.archive, bench.workflow, self._settings, self._signals
        )
        if decided is not None:
            self._say(f"canary: {decided.action}: {decided.reason}")
