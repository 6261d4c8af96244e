"""Agents that run at the client: their model calls are the turns of one rollout.

Goes in: calls of a conversation. Comes out: replies, and one episode when the rollout ends: the
client says so, nobody calls for a while, a limit of the workflow, the end of the server. Decision:
it is an ordinary rollout whose agent runs elsewhere, so recording and limits are the same; only its
clock stands still between calls, for what the client does then is not the bundle's time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from agentloop.errors import (
    AgentLoopError,
    BudgetReached,
    LimitReached,
    ModelError,
    StoreError,
)
from agentloop.gateway.front import Answer
from agentloop.gateway.server import Session
from agentloop.live.conversations import Conversation
from agentloop.live.kept import AGAIN, Kept
from agentloop.ports import Model
from agentloop.records import Attempt, Episode, Failure, Request


@dataclass(eq=False)
class Outside:
    """One such rollout."""

    attempt: Attempt
    store: bool
    """Whether it may be logged."""
    session: str | None
    """Its name, when the client gave one."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Future[Session] = field(default_factory=asyncio.Future)
    score: float | None = None
    done: asyncio.Task[Episode | None] | None = None


Known = Conversation[Outside]
Ended = Callable[[Known, Outside, Episode | None], None]
"""Told when a rollout of a conversation is over, and logged if it may be."""


class Outsiders:
    """Those that are open."""

    def __init__(self, kept: Kept, *, idle: float, ended: Ended) -> None:
        """`idle` seconds without a call end a rollout."""
        self._kept, self._idle, self._ended = kept, idle, ended
        self._batch = kept.outsiders(self._drive)
        self._open: dict[str, Outside] = {}
        self.broken: asyncio.Future[None] = asyncio.Future()
        """Gets the error that kept a rollout from the log, try after try: nobody else would hear
        of it."""

    def begin(self, one: Known, rollout: Outside) -> None:
        """Open a rollout; it becomes that of the conversation."""
        self._open[rollout.attempt.id] = one.rollout = rollout
        rollout.done = self._kept.task(self._run(one, rollout))

    async def call(self, rollout: Outside, request: Request) -> Answer:
        """One reply."""
        session = await asyncio.shield(rollout.ready)
        label = f"chatcmpl-{rollout.attempt.id}-{session.calls}"
        completion = await session.complete(request)
        return Answer(completion=completion, id=label, bundle=rollout.attempt.bundle)

    def stored(self, episode: str) -> bool:
        """Whether this is the episode of an open rollout that will be logged."""
        rollout = self._open.get(episode)
        return rollout is not None and rollout.store

    def close(self) -> None:
        """End all of them; `Kept.close` waits."""
        for rollout in self._open.values():
            rollout.over.set()

    async def _run(self, one: Known, rollout: Outside) -> Episode | None:
        """The whole rollout."""
        episode: Episode | None = None
        try:
            episode = await self._kept.roll_out(
                self._batch, rollout.attempt, store=rollout.store, score=lambda: rollout.score,
                again=AGAIN,
            )  # fmt: skip
        except StoreError as error:
            if not self.broken.done():
                self.broken.set_exception(error)
        finally:
            rollout.over.set()
            del self._open[rollout.attempt.id]
            if one.rollout is rollout:
                one.rollout = None
            if not rollout.ready.done():  # it never began
                failure = episode.failure if episode else None
                over = LimitReached("cancelled", "the rollout is over")
                rollout.ready.set_exception(error_of(failure) if failure else over)
                rollout.ready.exception()  # who waits is told, and who does not need not be
            self._ended(one, rollout, episode)
        return episode

    async def _drive(self, name: str, task: str, model: Model) -> str:
        """Open until the client ends it or falls silent; the last reply holds the answer."""
        rollout = self._open[name]
        session = Session(name, model)
        rollout.ready.set_result(session)
        try:
            while (left := self._left(session)) > 0:
                try:
                    await asyncio.wait_for(rollout.over.wait(), left)
                    break
                except TimeoutError:
                    continue
        finally:
            rollout.over.set()  # a later request begins another rollout
        return session.reply.message.content if session.reply else ""

    def _left(self, session: Session) -> float:
        """Seconds until the session counts as forgotten."""
        if session.in_flight:
            return self._idle
        return session.used + self._idle - time.monotonic()


def error_of(failure: Failure) -> AgentLoopError:
    """What a client is told of a rollout that failed."""
    match failure.reason:
        case "budget":
            return BudgetReached(failure.detail)
        case "turn_limit" | "token_limit" | "time_limit" | "cancelled":
            return LimitReached(failure.reason, failure.detail)
        case "model_error" | "model_timeout" | "context_overflow":
            return ModelError(failure.detail, reason=failure.reason)
    return AgentLoopError(f"the agent failed ({failure.reason}): {failure.detail}")
