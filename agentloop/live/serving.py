"""A workflow that answers clients: which conversation, which bundle, whose agent.

Goes in: requests (`gateway.front`). Comes out: answers. A request without tools is a rollout of the
workflow's own agent on the conversation. With tools, or in a session that the client named, the
agent runs at the client. Decision: a conversation stays with the bundle that it began with, so a
promotion, a rollback and a canary concern new ones alone, and no request ever waits for a load.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

from agentloop.errors import BudgetReached, LimitReached, UsageError
from agentloop.gateway.front import Answer, Call
from agentloop.gateway.http import Refused
from agentloop.graphs.lent import merge
from agentloop.lanes.bench import Bench, stream
from agentloop.live.conversations import Conversations, new_name, task_of, unit
from agentloop.live.kept import Kept, episode_of
from agentloop.live.lineup import Lineup, Say
from agentloop.live.outside import Known, Outside, Outsiders, error_of
from agentloop.live.watches import Watches
from agentloop.ports import Reward
from agentloop.records import Attempt, Completion, Episode, Json, Message, Task
from agentloop.workflows.schema import Serve

Tell = Callable[[str, Episode, bool], None]
"""Told of each named session that ended: its name, its episode, whether that was logged."""


class Service:
    """Satisfies `gateway.front.Desk`; use it as an async context, around the server's."""

    def __init__(
        self, bench: Bench, settings: Serve, *, idle: float, say: Say, tell: Tell,
        reward: Reward | None = None,
    ) -> None:  # fmt: skip
        """`idle` seconds without a request end a conversation. `reward` scores a logged one."""
        self._bench, self._settings = bench, settings
        self._say, self._tell = say, tell
        self._kept = Kept(bench, say=say, reward=reward)
        self._counts = self._kept.counts
        self._lineup = Lineup(bench, share=settings.canary, say=say)
        self._conversations: Conversations[Outside] = Conversations(idle)
        self._idle = idle

    async def __aenter__(self) -> Self:
        await self._lineup.start()
        self._own = self._kept.agents()
        self._outsiders = Outsiders(self._kept, idle=self._idle, ended=self._ended)
        self._watches = Watches(self._bench, self._settings, self._lineup, say=self._say)
        self._watches.start(self._forget_silent, self.broken)
        return self

    async def __aexit__(self, _: object, error: BaseException | None, *__: object) -> None:
        await self._watches.stop()
        self._outsiders.close()
        await self._kept.close()
        sound = self.broken.cancel()  # not, when a session could not be logged
        if not sound and error is None:
            self.broken.result()

    @property
    def broken(self) -> asyncio.Future[None]:
        """Gets the error that kept a session from the log, or ended a watch: serving must stop."""
        return self._outsiders.broken

    # --- for clients ----------------------------------------------------------------------------

    @property
    def model(self) -> str:
        """What clients may call the model; the bundle decides which one answers."""
        return self._bench.workflow

    async def answer(self, call: Call) -> Answer:
        """One reply."""
        self._counts["requests"] += 1
        messages, name = call.ask.request.messages, _named(call)
        one = self._conversations.find(name, messages)
        if one is None:
            one = self._begin(name or new_name(messages, time.time()))
        one.busy += 1
        try:
            answer = await (self._turn if _runs_outside(call) else self._run)(one, call)
        except BaseException:
            self._counts["failed"] += 1
            raise
        finally:
            one.busy -= 1
            self._conversations.touch(one)
        if name is None:
            self._conversations.replied(one, messages, answer.completion.message)
        return answer

    async def end(self, session: str, score: float | None) -> dict[str, Json]:
        """End a named session: its episode, which is logged if it may be."""
        one = self._conversations.find(_session(session), ())
        rollout = one.rollout if one is not None else None
        if rollout is None or rollout.done is None:
            raise Refused(404, f"there is no open session `{session}`", "not_found")
        rollout.score = score
        rollout.over.set()
        episode = await asyncio.shield(rollout.done)
        if episode is None:
            if self.broken.done():
                self.broken.result()
            raise LimitReached("cancelled", "the session was cancelled")
        return {
            "episode": episode.id, "answer": episode.answer, "logged": rollout.store,
            "failure": episode.failure.reason if episode.failure else None,
            "calls": episode.usage.calls, "tokens": episode.usage.tokens,
        }  # fmt: skip

    async def feedback(self, id: str, score: float, comment: str) -> dict[str, Json]:
        """A reward for the logged episode that a reply belongs to; as late and as often as one
        likes."""
        episode = episode_of(id)
        if not (self._outsiders.stored(episode) or await self._kept.logged(episode)):
            raise Refused(
                404, f"no conversation was logged under `{id[:80]}`: give the `id` of a reply "
                "whose request agreed to be stored", "not_found",
            )  # fmt: skip
        await self._kept.score(episode, score, comment)
        return {"episode": episode, "score": score}

    def health(self) -> dict[str, Json]:
        """Counts and versions."""
        shown = ("requests", "failed", "logged", "feedback")
        trouble = self._lineup.trouble or self._kept.unlogged or self.broken.done()
        return {
            "status": "degraded" if trouble else "ok",
            "workflow": self.model,
            "champion": self._lineup.bundle("champion"),
            "canary": self._lineup.bundle("canary"),
            "swaps": self._lineup.swaps,
            "conversations": len(self._conversations),
            **{name: self._counts[name] for name in shown},
        }

    # --- rollouts -------------------------------------------------------------------------------

    def _begin(self, name: str) -> Known:
        ready = self._lineup.choose(unit(name))
        self._lineup.hold(ready)
        return self._conversations.begin(name, ready, self._lineup.choice)

    async def _run(self, one: Known, call: Call) -> Answer:
        """The own agent's answer to the last message, as a rollout of its own."""
        *history, last = call.ask.request.messages
        if last.role != "user":
            raise UsageError(
                "the last message must be the user's: the workflow's agent answers it; to run an "
                "agent of your own, send its `tools`"
            )
        attempt = self._attempt(one, call, last.content, history)
        work = self._kept.roll_out(self._own, attempt, store=_may_store(self._settings, call))
        episode = await self._kept.task(work)  # whose cancellation is the rollout's
        if episode is None:
            raise LimitReached("cancelled", "the rollout was stopped")
        if episode.failure is not None:
            raise error_of(episode.failure)
        completion = Completion(
            message=Message(role="assistant", content=episode.answer or ""), finish_reason="stop",
            usage=episode.usage, model=self.model,
        )  # fmt: skip
        return Answer(completion=completion, id=f"chatcmpl-{episode.id}", bundle=attempt.bundle)

    async def _turn(self, one: Known, call: Call) -> Answer:
        """One model call of the client's agent, in the rollout that is open or in a new one."""
        rollout, store = one.rollout, _may_store(self._settings, call)
        if rollout is None or rollout.over.is_set() or rollout.store != store:
            if rollout is not None:
                rollout.over.set()
            messages = call.ask.request.messages
            asked = next((m.content for m in reversed(messages) if m.role == "user"), "")
            rollout = Outside(self._attempt(one, call, asked), store, call.session)
            self._outsiders.begin(one, rollout)
        return await self._outsiders.call(rollout, call.ask.request)

    def _attempt(
        self, one: Known, call: Call, prompt: str, history: Sequence[Message] = ()
    ) -> Attempt:
        """The order for one rollout. Raises `BudgetReached`."""
        bench = self._bench
        most, begun = bench.max_rollouts, self._counts["rollouts"]
        if most is not None and begun >= most:
            raise BudgetReached(
                f"{begun} of {most} rollouts are used; raise `budget.rollouts` and serve again"
            )
        self._counts["rollouts"] += 1
        one.turns += 1
        task = Task(
            id=task_of(one.name, one.turns), prompt=prompt, family="serve", data=one.between
        )
        system, skills = one.ready.system(prompt)
        sampling = replace(bench.decoding, seed=stream(bench.seed, task.id, 0))
        if not _runs_outside(call):  # otherwise each of its calls says how it samples
            sampling = merge(call.ask.request.sampling, sampling)
        return Attempt(
            task=task, bundle=one.ready.bundle, system=system, sampling=sampling, purpose="serve",
            run=bench.run, policy=one.ready.policy, skills=skills, subject=f"serve/{begun}",
            history=tuple(history),
        )  # fmt: skip

    def _ended(self, one: Known, rollout: Outside, episode: Episode | None) -> None:
        if rollout.session is None:
            return
        if one.rollout is None:  # no other has begun in its name
            self._forget(one)
        if episode is not None:
            self._tell(rollout.session, episode, rollout.store)

    def _forget_silent(self) -> None:
        for one in self._conversations.silent():
            self._forget(one)

    def _forget(self, one: Known) -> None:
        if self._conversations.forget(one):
            self._lineup.release(one.ready)


def _may_store(settings: Serve, call: Call) -> bool:
    """Consent is read from each request, and a rollout has one answer to it."""
    match settings.consent:
        case "always":
            return call.store is not False
        case "ask":
            return call.store is True
        case _:
            return False


def _session(name: str) -> str:
    return f"session:{name}"


def _named(call: Call) -> str | None:
    """What the client calls the conversation, as it is known by."""
    if call.session is not None:
        return _session(call.session)
    return None if call.conversation is None else f"conversation:{call.conversation}"


def _runs_outside(call: Call) -> bool:
    """Whether the client runs the agent: it named a session, brings tools or has used some."""
    messages = call.ask.request.messages
    used = any(one.role == "tool" or one.tool_calls for one in messages)
    return call.session is not None or call.ask.tools or used
