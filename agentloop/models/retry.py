"""The one place where a call is made again: `Retrying` around a transport.

In: a `Request`; out: the first `Completion`, whose `usage.calls` counts every attempt. Transports
make one attempt each (the retries of their libraries are off), so attempts never multiply.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from agentloop.errors import ModelError
from agentloop.models import faults
from agentloop.ports import Model
from agentloop.records import Completion, Request

RETRY_AFTER_CAP = 60.0


class Retrying:
    """Try retryable `ModelError`s again, within a deadline for all attempts together."""

    def __init__(
        self,
        inner: Model,
        *,
        attempts: int = 4,
        base: float = 0.5,
        cap: float = 20.0,
        deadline: float = 300.0,
        seed: int = 0,
    ) -> None:
        """Before attempt k+1 it waits a random part of `min(cap, base * 2**(k-1))` seconds, or what
        `Retry-After` said, at most 60 s. (Exponential backoff with "full jitter": M. Brooker,
        AWS Architecture Blog, 2015.)"""
        self._inner, self._attempts, self._deadline = inner, attempts, deadline
        self._base, self._cap = base, cap
        self._random = random.Random(seed)
        self.calls = 0
        """Attempts made so far, over all requests."""

    async def complete(self, request: Request) -> Completion:
        """One reply. Raises the last `ModelError`, its `calls` the number of attempts."""
        made = 0

        async def attempt() -> Completion:
            nonlocal made
            made += 1
            self.calls += 1
            return await self._inner.complete(request)

        again = AsyncRetrying(
            stop=stop_after_attempt(self._attempts),
            wait=self._wait,
            retry=retry_if_exception(_is_retryable),
            reraise=True,
        )
        try:
            async with asyncio.timeout(self._deadline):
                completion: Completion = await again(attempt)
        except TimeoutError as error:
            late = faults.timed_out(f"the model (tried {made} times)", self._deadline)
            late.calls, late.retryable = made, False  # the time for trying is over
            raise late from error
        except ModelError as error:
            error.calls = made
            raise
        return replace(completion, usage=replace(completion.usage, calls=made))

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, ModelError) and error.retry_after is not None:
            return min(error.retry_after, RETRY_AFTER_CAP)
        return self._random.uniform(
            0.0, min(self._cap, self._base * 2.0 ** (state.attempt_number - 1))
        )


def _is_retryable(error: BaseException) -> bool:
    return isinstance(error, ModelError) and error.retryable
