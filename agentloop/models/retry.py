"""The one place where a call is made again: `Retrying` around a transport.

In: a `Request`; out: the first `Completion`, whose `usage.calls` counts every attempt. Transports
make one attempt each (the retries of their libraries are off), so attempts never multiply.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from agentloop.deadline import deadline, time_left
from agentloop.errors import ModelError
from agentloop.models import faults
from agentloop.ports import Model
from agentloop.records import Completion, Request

ATTEMPTS = 4
DEADLINE = 300.0
RETRY_AFTER_CAP = 60.0


class Retrying:
    """Try retryable `ModelError`s again, within a deadline for all attempts together."""

    def __init__(
        self,
        inner: Model,
        *,
        attempts: int = ATTEMPTS,
        base: float = 0.5,
        cap: float = 20.0,
        deadline: float = DEADLINE,
        seed: int = 0,
    ) -> None:
        """Before attempt k+1 it waits a random part of `min(cap, base * 2**(k-1))` seconds, and no
        less than what `Retry-After` said, up to 60 s. (Exponential backoff with "full jitter":
        M. Brooker, AWS Architecture Blog, 2015.)"""
        self._inner, self._attempts, self._deadline = inner, attempts, deadline
        self._base, self._cap = base, cap
        self._random = random.Random(seed)

    async def complete(self, request: Request) -> Completion:
        """One reply. Raises the last `ModelError`, its `calls` the number of attempts."""
        made = 0
        last: ModelError | None = None
        end = deadline(self._deadline)
        try:
            async with end:
                while True:
                    made += 1
                    try:
                        completion = await self._inner.complete(request)
                        break
                    except ModelError as error:
                        made -= error.calls == 0  # it was refused its turn
                        if not error.retryable or made >= self._attempts:
                            raise
                        last = error
                    wait = self._wait(last, made)
                    if wait >= time_left():  # there would be no time to try again
                        raise TimeoutError
                    await asyncio.sleep(wait)
        except TimeoutError as error:
            raise _late(made, end.seconds, last) from (last or error)
        except ModelError as error:
            error.calls = made
            raise
        if made == 1 and completion.usage.calls == 1:
            return completion
        return replace(completion, usage=replace(completion.usage, calls=made))

    def _wait(self, error: ModelError, made: int) -> float:
        asked = min(error.retry_after or 0.0, RETRY_AFTER_CAP)
        return max(asked, self._random.uniform(0.0, min(self._cap, self._base * 2.0 ** (made - 1))))


def _late(made: int, seconds: float, last: ModelError | None) -> ModelError:
    times = "once" if made == 1 else f"{made} times"
    late = faults.timed_out(f"the model (tried {times})", round(seconds, 2), last)
    late.calls, late.retryable = made, False  # the time for trying is over
    return late
