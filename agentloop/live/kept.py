"""Live rollouts, and what is kept of them: with consent the episode and its rewards, else nothing.

Goes in: orders for rollouts, each with or without consent. Comes out: episodes; those with consent
are in the log before anybody sees them, those without were never written anywhere. Decision: no
call is journaled and no step is kept, so that whether to log the episode is all there is to decide.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any, TypeVar

from agentloop.errors import AgentLoopError, StoreError
from agentloop.graphs.program import Drive, program_graph
from agentloop.graphs.run import Batch
from agentloop.lanes.bench import Bench
from agentloop.live.lineup import Say
from agentloop.live.signals import FEEDBACK, LIVE, OTHERS
from agentloop.ports import Reward
from agentloop.records import Attempt, Episode, Score
from agentloop.rewards.grading import SUCCESS
from agentloop.store.query import Query

ENDING = 1.5
"""Seconds that rollouts have to end and be logged in when the server stops, and as many when they
had to be cancelled: with `gateway.front.ENDING` and the model server's end it stays below ten."""
AGAIN = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds between tries to log what no client waits for: a disk may be full for a minute."""
_ID = re.compile(r"(?:chatcmpl-)?(ep-[0-9a-f]{16})(?:-\d+)?")

T = TypeVar("T")


def episode_of(reply: str) -> str:
    """The episode that a reply's id (or its own) names; empty for anything else."""
    found = _ID.fullmatch(reply)
    return found[1] if found else ""


class Kept:
    """The rollouts of one server; made on its event loop."""

    def __init__(self, bench: Bench, *, say: Say, reward: Reward | None) -> None:
        """`reward` scores what was logged, `say` is told when it cannot."""
        self.bench, self.counts = bench, Counter[str]()
        self._say, self._reward = say, reward
        self._ended: dict[str, Episode] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stack = ExitStack()
        self._closing = asyncio.Event()
        self.unlogged: set[str] = set()
        """Episodes that could not be logged yet, and are tried again."""

    def agents(self) -> Batch:
        """Rollouts of the workflow's own agent."""
        bench = self.bench
        return self._stack.enter_context(bench.runner.opened(
            model=bench.model, tools=bench.tools, limits=bench.limits, on_done=self._end,
        ))  # fmt: skip

    def outsiders(self, drive: Drive) -> Batch:
        """Rollouts of agents that run elsewhere."""
        runner = replace(
            self.bench.runner, graph=program_graph(drive, calls_only=True), checkpoints=None
        )
        return self._stack.enter_context(
            runner.opened(model=self.bench.model, limits=self.bench.limits, on_done=self._end)
        )

    async def roll_out(
        self, batch: Batch, attempt: Attempt, *, store: bool,
        score: Callable[[], float | None] = lambda: None, again: Sequence[float] = (),
    ) -> Episode | None:  # fmt: skip
        """Roll out and, with consent to `store`, log what became of it and its `score`, also when
        it is cancelled; a log that fails is tried `again` after so many seconds each. `None` when
        it was cancelled before it began. Raises `StoreError`."""
        try:
            await batch.rollout(attempt)
        finally:
            episode = self._ended.pop(attempt.id, None)
            if episode is not None and store and _says_something(episode):
                await self._keep(episode, score(), again)
        return episode

    async def score(self, episode: str, value: float, comment: str = "") -> None:
        """Append what a client says of an episode."""
        bench, source = self.bench, FEEDBACK
        said = Score(value=value, success=value >= SUCCESS, source=source, feedback=comment)
        await bench.archive.add_scores([(episode, said)], source, scope=bench.workflow)
        self.counts["feedback"] += 1

    async def logged(self, episode: str) -> bool:
        """Whether the log has this conversation."""
        query = Query(kinds=("episode",), scope=self.bench.workflow, purpose="serve")
        return bool(await asyncio.to_thread(self.bench.archive.log.chosen, query, [episode]))

    def task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Work that is waited for at the end."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Wait for what is under way, cancel what takes too long; all of it is logged."""
        self._closing.set()
        await self._settled()
        for task in self._tasks:
            task.cancel()
        await self._settled()
        self._stack.close()

    async def _settled(self) -> None:
        """Until nothing is under way, or so long; what ends may begin another task."""
        end = time.monotonic() + ENDING
        while self._tasks and (left := end - time.monotonic()) > 0:
            await asyncio.wait(self._tasks, timeout=left)

    async def _keep(self, episode: Episode, score: float | None, again: Sequence[float]) -> None:
        waits = iter(again)
        while True:
            try:
                await self._log(episode, score)
                break
            except StoreError as error:
                wait = next(waits, None)
                if wait is None or self._closing.is_set():
                    raise
                if not self.unlogged:
                    self._say(f"{episode.id} cannot be logged: {error}; tried again for a while")
                self.unlogged.add(episode.id)
                with suppress(TimeoutError):  # not waited for when the server stops
                    await asyncio.wait_for(self._closing.wait(), wait)
        self.unlogged.discard(episode.id)
        self.counts["logged"] += 1
        if self._reward is not None and episode.failure is None:
            self.task(self._grade(episode, self._reward))

    async def _log(self, episode: Episode, score: float | None) -> None:
        await self.bench.archive.add_episodes([episode], scope=self.bench.workflow)
        if score is not None and episode.failure is None:
            await self.score(episode.id, score)

    async def _grade(self, episode: Episode, reward: Reward) -> None:
        """The workflow's own reward; one that fails leaves the conversation without."""
        bench = self.bench
        try:
            [score] = await reward.score([episode])
            await bench.archive.add_scores([(episode.id, score)], LIVE, scope=bench.workflow)
        except AgentLoopError as error:
            self._say(f"`serve.reward` gave {episode.id} no score: {error}")
        except asyncio.CancelledError:
            self._say(f"`serve.reward` gave {episode.id} no score: the server stops")
            raise

    def _end(self, episode: Episode) -> None:
        self._ended[episode.id] = episode


def _says_something(episode: Episode) -> bool:
    """Whether a model replied, or should have."""
    replied = any(one.nodes for one in episode.trajectories)
    failure = episode.failure
    return replied or (failure is not None and failure.reason not in OTHERS)
