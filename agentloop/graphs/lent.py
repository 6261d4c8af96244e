"""The model as one rollout sees it: the attempt's system text, policy, seeds and limits applied.

Goes in: a graph's `Request`. Comes out: the wrapped model's `Completion`, recorded. Decision: the
graph never learns that it is being measured, so one graph serves every bundle; what a graph sets
itself of how to sample (`merge`) wins over the attempt's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any, NamedTuple

from agentloop.deadline import Clock, off_the_clock
from agentloop.errors import BudgetReached, LimitReached, ModelError, StoreError, UsageError
from agentloop.graphs.call_keys import CallKeys
from agentloop.graphs.pace import Pace, Place
from agentloop.ports import Model
from agentloop.records import (
    Attempt,
    Completion,
    Failure,
    Limits,
    Message,
    OwnSampling,
    Request,
    Sampling,
    ToolSpec,
    Unanswered,
    Usage,
)
from agentloop.trajectories.examples import split_turns
from agentloop.trajectories.recorder import Recorder

_GRACE = 0.5
"""Seconds that cancelled calls have to end in."""
_DEFAULT = Sampling()
_FIELDS = tuple(field.name for field in fields(Sampling))


class Spent(NamedTuple):
    """Time that a rollout took, in all processes that ran it."""

    began: float
    """When the first one began, by the wall clock."""
    seconds: float
    """While one of them ran it."""
    clock: float
    """The seconds of these that count towards its limit."""


class LentModel:
    """A `ports.Model` for one rollout; make it on the event loop that its model lives on."""

    def __init__(
        self, model: Model, attempt: Attempt, limits: Limits, *, turns: bool = False,
        place: Place | None = None,
    ) -> None:  # fmt: skip
        """With `turns` the worked examples in the system text become chat turns before the
        graph's own messages: for models that call tools in plain text. `place` is its place among
        other rollouts."""
        self._model, self._attempt, self.limits = model, attempt, limits
        own = (attempt.system, ())
        self._system, self._lent = split_turns(attempt.system) if turns else own
        self._loop = asyncio.get_running_loop()
        self._place = place or Place(Pace())
        self.started = time.monotonic()
        """When the rollout began here, by the monotonic clock."""
        self._before = Spent(time.time(), 0.0, 0.0)
        self.clock = Clock(limits.seconds)
        """What counts towards its limit of time: not what its calls wait for their turn."""
        self._calls = 0
        self.keys = CallKeys(attempt)
        self._aside = 0  # tokens that calls in flight may sample
        self._in_flight = 0
        self._dearest: float | None = None  # US dollars; of the calls so far that were paid for
        self._settled = asyncio.Event()  # set when one of them ends; then there is a new one
        self._running: set[asyncio.Task[Any]] = set()
        self.recorder = Recorder()
        self.usage = Usage()
        self.stopped: LimitReached | BudgetReached | StoreError | None = None
        """Why calls are refused from now on; a graph that catches the error cannot hide it."""
        self.failed: ModelError | None = None
        """Why the last call brought no reply: an outage, whatever the graph makes of it (`None` for
        a prompt that is too long, which the graph may handle)."""
        self.offered: dict[str, ToolSpec] = {}
        """The tools that the model was shown, by name."""
        self.unanswered: list[Unanswered] = []
        """Calls that failed, for the record."""
        self._replies = 0
        self.on_call: Callable[[Request, Completion], None] | None = None
        """Told of every finished call, if there is somebody to tell."""

    async def complete(self, request: Request) -> Completion:
        """One reply. Raises `LimitReached`, `BudgetReached`, or the model's `ModelError`."""
        if asyncio.get_running_loop() is not self._loop:  # a synchronous node runs one of its own
            there = asyncio.run_coroutine_threadsafe(self.complete(request), self._loop)
            return await asyncio.wrap_future(there)
        self._check(self._calls)
        caller = asyncio.current_task()
        assert caller is not None
        self._running.add(caller)
        try:
            completion = await self._complete(request)
            with self.clock.running(), off_the_clock():  # it waits for other rollouts
                await self._place.enter()
        finally:
            self._running.discard(caller)
        return completion

    async def _complete(self, request: Request) -> Completion:
        calls, self._calls = self._calls, self._calls + 1
        most: int | None = None
        try:
            sampling = merge(request.sampling, self._attempt.sampling)
            messages = with_system(self._system, request.messages, lent=self._lent)
            key, seed = self.keys.next(messages, request.tools, sampling, calls)
            most = await self._set_aside(sampling.max_tokens, calls)
            request = Request(
                messages=self.recorder.prepare(messages),
                tools=request.tools,
                sampling=replace(sampling, max_tokens=most, seed=seed),
                policy=self._attempt.policy,
                key=key,
            )
            self.offered.update((spec.name, spec) for spec in request.tools)
            self._place.leave()
            with self.clock.running():
                completion = await self._model.complete(request)
        except (BudgetReached, StoreError) as error:
            self.stopped = error
            raise
        except ModelError as error:
            self._note(request.key, error)
            self.failed = None if error.reason == "context_overflow" else error
            raise
        finally:
            if most is not None:
                self._aside, self._in_flight = self._aside - most, self._in_flight - 1
            self._settled.set()
            self._settled = asyncio.Event()
        self.failed = None
        self._count(completion)
        self.recorder.add(request, completion)
        if self.on_call is not None:
            self.on_call(request, completion)
        return completion

    def spent(self) -> Spent:
        """The rollout's time so far."""
        began, seconds, _ = self._before
        return Spent(began, seconds + time.monotonic() - self.started, self.clock.seconds())

    def go_on(self, spent: Spent) -> None:
        """Take over the time that an interrupted run of this rollout took."""
        self._before = spent
        self.clock.add(spent.clock)

    def restore(self, calls: Iterable[tuple[Request, Completion]]) -> None:
        """Take over the calls that an interrupted run of this rollout finished, in order."""
        for request, completion in calls:
            number = self.keys.finished(request.key)
            self._calls = max(self._calls, number + 1)  # side by side they end in any order
            self._count(completion)
            messages = self.recorder.prepare(request.messages)
            self.recorder.add(replace(request, messages=messages), completion)

    def complete_from_thread(self, request: Request) -> Completion:
        """The same for a synchronous node, which LangGraph runs in a thread. Raises `UsageError`
        on the event loop's own thread, where waiting would block the model as well."""
        try:
            on_loop = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            on_loop = False
        if on_loop:
            raise UsageError(
                "a synchronous model call inside an async node would block every rollout; "
                "write `await model.ainvoke(...)` there, or make the node a plain function"
            )
        return asyncio.run_coroutine_threadsafe(self.complete(request), self._loop).result()

    async def close(self) -> None:
        """End the rollout: later calls are refused (a synchronous node that outlived the deadline
        may still try); tasks of the graph that wait for a reply are cancelled and waited for."""
        self.stopped = self.stopped or LimitReached("cancelled", "the rollout is over")
        left = self._running - {asyncio.current_task()}
        for caller in left:
            caller.cancel()
        if left:
            await asyncio.wait(left, timeout=_GRACE)

    async def _set_aside(self, wanted: int, calls: int) -> int:
        """The tokens that a call after `calls` others may sample: its own until it ends. While
        calls in flight could use up what it needs it waits for them, on the clock: they are this
        rollout's."""
        while True:
            left = self.limits.tokens - self.usage.completion_tokens
            most = min(wanted, left)
            if self._aside + most <= left and self._affordable():
                self._aside, self._in_flight = self._aside + most, self._in_flight + 1
                return most
            await self._settled.wait()
            self._check(calls)

    def _affordable(self) -> bool:
        """Whether one more call may join those in flight: what they cost only their replies tell,
        so each is taken to cost as much as the dearest, and until one was paid for they go alone.
        So `limits.usd` is passed by the last call at most, or by calls that grow dearer."""
        limit = self.limits.usd
        if limit is None or not self._in_flight:
            return True
        if self._dearest is None:
            return False
        return self.usage.usd + (self._in_flight + 1) * self._dearest <= limit

    def _count(self, completion: Completion) -> None:
        self._replies += 1
        self.usage += completion.usage
        if not completion.cached:
            self._dearest = max(self._dearest or 0.0, completion.usage.usd)

    def _note(self, key: str, error: ModelError) -> None:
        failure = Failure(reason=error.reason, detail=str(error))  # type: ignore[arg-type]
        call = key.rpartition("/")[2]
        self.unanswered.append(Unanswered(call=call, after=self._replies, failure=failure))

    def _check(self, calls: int) -> None:
        """Whether a call after `calls` others may be made."""
        if self.stopped is None:
            self.stopped = self._reached(calls)
        if self.stopped is not None:
            raise self.stopped

    def _reached(self, calls: int) -> LimitReached | None:
        limits, used = self.limits, self.usage
        if calls >= limits.turns:
            return LimitReached("turn_limit", f"no final answer within {limits.turns} model calls")
        if used.completion_tokens >= limits.tokens:
            return LimitReached("token_limit", f"{limits.tokens} sampled tokens are used up")
        if self.clock.left() <= 0:
            return LimitReached("time_limit", f"not finished after {limits.seconds:g} s")
        if limits.usd is not None and used.usd >= limits.usd:
            return LimitReached("budget", f"${limits.usd:g} for one rollout is used up")
        return None


def with_system(
    text: str, messages: tuple[Message, ...], *, lent: tuple[Message, ...] = ()
) -> tuple[Message, ...]:
    """`messages` with `text` as the system message (the agent's own follows after a blank line)
    and the `lent` turns after it."""
    own: tuple[Message, ...] = ()
    if messages and messages[0].role == "system":
        own, messages = messages[:1], messages[1:]
    if text:
        content = f"{text}\n\n{own[0].content}" if own else text
        head = replace(own[0], content=content) if own else Message(role="system", content=content)
        own = (head,)
    return (*own, *lent, *messages)


def merge(own: Sampling, given: Sampling) -> Sampling:
    """`given`, overridden by the fields that an `OwnSampling` names, or in which a plain `own`
    differs from the default."""
    if own == _DEFAULT:  # what almost every call of a graph has
        return given
    names = (
        own.given
        if isinstance(own, OwnSampling)
        else [one for one in _FIELDS if getattr(own, one) != getattr(_DEFAULT, one)]
    )
    return replace(given, **{name: getattr(own, name) for name in names}) if names else given
