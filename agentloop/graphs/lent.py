"""The model as one rollout sees it: the attempt's system text, policy, seeds and limits applied.

Goes in: a graph's `Request`. Comes out: the wrapped model's `Completion`, recorded. Decision: the
graph never learns that it is being measured, so one graph serves every bundle; what a graph sets
itself (any sampling field that differs from the record's default) wins over the attempt's.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import fields, replace

from agentloop.errors import BudgetReached, UsageError
from agentloop.ports import Model
from agentloop.records import (
    Attempt,
    Completion,
    Limits,
    Message,
    Reason,
    Request,
    Sampling,
    Usage,
)
from agentloop.trajectories.examples import split_turns
from agentloop.trajectories.recorder import Recorder


class LimitReached(Exception):
    """A limit of this rollout was reached before the next call; the runner turns it into a
    `Failure` with `reason`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason


class LentModel:
    """A `ports.Model` for one rollout; make it on the event loop that its model lives on."""

    def __init__(
        self, model: Model, attempt: Attempt, limits: Limits, *, turns: bool = False
    ) -> None:
        """With `turns` the worked examples in the system text become chat turns before the
        graph's own messages: for models that call tools in plain text."""
        self._model, self._attempt, self._limits = model, attempt, limits
        own = (attempt.system, ())
        self._system, self._lent = split_turns(attempt.system) if turns else own
        self._loop = asyncio.get_running_loop()
        self._started = time.monotonic()
        self._calls = 0
        self._running: set[asyncio.Future[Completion]] = set()
        self.recorder = Recorder()
        self.usage = Usage()
        self.stopped: LimitReached | BudgetReached | None = None
        """Why calls are refused from now on; a graph that catches the error cannot hide it."""

    async def complete(self, request: Request) -> Completion:
        """One reply. Raises `LimitReached`, `BudgetReached`, or the model's `ModelError`."""
        self._check()
        number, self._calls = self._calls, self._calls + 1
        request = self._stamp(request, number)
        call = asyncio.ensure_future(self._model.complete(request))
        self._running.add(call)
        try:
            completion = await call
        except BudgetReached as error:
            self.stopped = error
            raise
        finally:
            self._running.discard(call)
        self.usage += completion.usage
        self.recorder.add(request, completion)
        return completion

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

    def close(self) -> None:
        """End the rollout: calls in flight are cancelled, later ones refused (a synchronous node
        that outlived the deadline may still try)."""
        self.stopped = self.stopped or LimitReached("cancelled", "the rollout is over")
        for call in tuple(self._running):
            call.cancel()

    def _check(self) -> None:
        if self.stopped is None:
            self.stopped = self._reached()
        if self.stopped is not None:
            raise self.stopped

    def _reached(self) -> LimitReached | None:
        limits, used = self._limits, self.usage
        if self._calls >= limits.turns:
            return LimitReached("turn_limit", f"no final answer within {limits.turns} model calls")
        if used.completion_tokens >= limits.tokens:
            return LimitReached("token_limit", f"{limits.tokens} sampled tokens are used up")
        if time.monotonic() - self._started >= limits.seconds:
            return LimitReached("time_limit", f"not finished after {limits.seconds:g} s")
        if limits.usd is not None and used.usd >= limits.usd:
            return LimitReached("budget", f"${limits.usd:g} for one rollout is used up")
        return None

    def _stamp(self, request: Request, number: int) -> Request:
        attempt = self._attempt
        sampling = merge(request.sampling, attempt.sampling)
        left = self._limits.tokens - self.usage.completion_tokens
        sampling = replace(
            sampling,
            max_tokens=min(sampling.max_tokens, left),
            seed=_seed(sampling.seed, attempt.sample, number),
        )
        return replace(
            request,
            messages=self.recorder.prepare(
                with_system(self._system, request.messages, lent=self._lent)
            ),
            sampling=sampling,
            policy=attempt.policy,
            key=f"{attempt.id}/{number}",
        )


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
    """`given`, overridden by every field in which `own` differs from the default."""
    default = Sampling()
    changed = {
        field.name: getattr(own, field.name)
        for field in fields(Sampling)
        if getattr(own, field.name) != getattr(default, field.name)
    }
    return replace(given, **changed)


def _seed(seed: int | None, sample: int, number: int) -> int | None:
    """A 31-bit seed for one call: calls and samples differ, repetitions do not."""
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed}/{sample}/{number}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") & 0x7FFFFFFF
