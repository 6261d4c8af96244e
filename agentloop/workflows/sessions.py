"""Sessions of agents that a person starts: `agentloop gateway` gives them the champion bundle.

Goes in: calls at `/r/<any name>/v1`. Comes out: one episode per session, in the log. A session
begins with the first call under a name that is not open and ends when the client says so
(`DELETE /r/<name>`, with a score if it knows one), when nobody called for `idle` seconds, or at a
limit of the workflow. Decision: it is an ordinary rollout whose agent runs elsewhere; its task is
what its first call asks. It is scored by the client or not at all, since the workflow's grader
does not know its task.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Self

from agentloop.errors import BudgetReached, LimitReached
from agentloop.gateway.server import Gateway, Session
from agentloop.graphs.program import program_graph
from agentloop.lanes.bench import Bench, Order
from agentloop.ports import Model
from agentloop.records import Endpoint, Episode, Request, Score, Task

SCORER = "gateway"
"""`Score.source` of what a client said."""
_ENDING = 5.0
"""Seconds that open sessions have to end in when the gateway stops."""

Tell = Callable[[str, Episode], None]
"""Told of each session that ended: its name and its episode, which is logged."""


@dataclass
class _Open:
    """A session from its first call to its end."""

    name: str
    over: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Future[Session] = field(default_factory=asyncio.Future)
    score: float | None = None


class Sessions:
    """The gateway of one bench; use it as an async context."""

    def __init__(self, bench: Bench, *, port: int, idle: float, tell: Tell) -> None:
        """`idle` seconds without a call end a session; `port` 0 is any free one."""
        self._bench, self._idle, self._tell = bench, idle, tell
        self._gateway = Gateway(port=port, admit=self._admit, end=self._end)
        self._running: dict[str, tuple[_Open, asyncio.Task[Episode]]] = {}
        self._begun = 0
        self._stopping = False
        self._stack = AsyncExitStack()
        self.broken: asyncio.Future[None] = asyncio.Future()
        """Gets the error that kept a session from the log: then serving must stop."""

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._gateway)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stopping = True
        tasks = [task for _, task in self._running.values()]
        for one, _ in self._running.values():
            one.over.set()
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=_ENDING)
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left, timeout=_ENDING)
        sound = self.broken.cancel()  # not, when a session could not be logged
        await self._stack.aclose()
        if not sound and error is None:
            self.broken.result()

    def endpoint(self, name: str) -> Endpoint:
        """What a client of session `name` needs."""
        return self._gateway.endpoint(name)

    async def _admit(self, name: str, request: Request) -> Session:
        while name in self._running and self._running[name][0].ready.done():
            await asyncio.wait((self._running[name][1],))  # the one before is being logged
        if self._stopping:
            raise LimitReached("cancelled", "the gateway stops")
        if name not in self._running:
            one = _Open(name)
            task = asyncio.create_task(self._session(one, request))
            self._running[name] = (one, task)
            task.add_done_callback(partial(self._ended, name))
        one, _ = self._running[name]
        return await asyncio.shield(one.ready)

    def _ended(self, name: str, task: asyncio.Task[Episode]) -> None:
        one, _ = self._running.pop(name)
        error = None if task.cancelled() else task.exception()
        if error is None:
            one.ready.cancel()
        elif not one.ready.done():
            one.ready.set_exception(error)
        elif not self.broken.done():
            self.broken.set_exception(error)

    async def _end(self, name: str, score: float | None) -> dict[str, object]:
        one, task = self._running[name]
        one.score = score
        one.over.set()
        episode = await asyncio.shield(task)
        failure = episode.failure.reason if episode.failure else None
        return {
            "episode": episode.id,
            "answer": episode.answer,
            "failure": failure,
            "calls": episode.usage.calls,
            "tokens": episode.usage.tokens,
        }

    async def _session(self, one: _Open, request: Request) -> Episode:
        """The session as a rollout, logged at its end."""
        bench = self._bench
        bench._afford(len(self._running))
        self._begun += 1
        asked = next((m.content for m in reversed(request.messages) if m.role == "user"), "")
        task = Task(id=f"gateway/{one.name}", prompt=asked, family="gateway")
        order = Order(purpose="serve", subject=f"{one.name}/{self._begun}")
        attempts = await bench._orders([task], bench.bundle(bench.champion), order)
        runner = replace(
            bench.runner, graph=program_graph(partial(self._drive, one)), checkpoints=None
        )
        made: list[Episode] = []
        with suppress(BudgetReached):  # the client was told so, and so says the episode's failure
            await runner.run(attempts, model=bench.model, limits=bench.limits, on_done=made.append)
        [episode] = made
        await bench.archive.add_episodes([episode], scope=bench.workflow)
        if one.score is not None and episode.failure is None:
            score = Score(value=one.score, success=one.score >= 1, source=SCORER)
            await bench.archive.add_scores([(episode.id, score)], SCORER, scope=bench.workflow)
            episode = replace(episode, score=score)
        self._tell(one.name, episode)
        return episode

    async def _drive(self, one: _Open, rollout: str, task: str, model: Model) -> str:
        """Open until the client ends it or falls silent; the last reply holds the answer."""
        session = self._gateway.open(one.name, model)
        one.ready.set_result(session)
        try:
            while (left := self._left(session)) > 0:
                try:
                    await asyncio.wait_for(one.over.wait(), left)
                    break
                except TimeoutError:
                    continue
        finally:
            self._gateway.close(one.name)
        return session.reply.message.content if session.reply else ""

    def _left(self, session: Session) -> float:
        """Seconds until the session counts as forgotten."""
        if session.in_flight:
            return self._idle
        return session.used + self._idle - time.monotonic()
