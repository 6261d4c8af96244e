"""Never pay a finished call again: `Journaled` answers a known `Request.key` from a journal.

In: a `Request`; out: the recorded `Completion`, or a new one that is recorded before it is given
out. It stands outside the meter, so an answer from the journal is charged to nobody.
"""

from __future__ import annotations

import asyncio
from typing import Protocol
from weakref import WeakValueDictionary

from agentloop.errors import StoreError
from agentloop.ports import Model
from agentloop.records import Completion, Request
from agentloop.trajectories.redact import Redactor, guarded


class Journal(Protocol):
    """Where replies are kept; the store has one."""

    def call(self, key: str) -> Completion | None:
        """The reply recorded under `key`."""
        ...

    async def add_call(self, key: str, completion: Completion) -> None:
        """Record a reply; durable when this returns."""
        ...


class Journaled:
    """A model with a memory. Requests without a key pass through."""

    def __init__(self, inner: Model, journal: Journal, redact: Redactor | None = None) -> None:
        """`redact` (default: what the environment holds) says whose token ids are not kept."""
        self._inner, self._journal = inner, journal
        self._redact = redact or Redactor.from_environment()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._unkept: Exception | None = None
        self.replayed = 0
        """Requests answered without a call."""

    async def complete(self, request: Request) -> Completion:
        """One reply; requests under way with the same key wait for the first. Errors pass."""
        if not request.key:
            return await self._ask(request)
        completion, _ = await self.recall(request.key, request)
        return completion

    async def recall(self, key: str, request: Request) -> tuple[Completion, bool]:
        """The reply under `key`, and whether it was known; if not, `request` was made."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            if key in self._writing:  # left by a caller that was cancelled
                await asyncio.shield(self._writing[key])
            known = self._journal.call(key)
            if known is not None:
                self.replayed += 1
                return known, True
            completion = await self._ask(request)
            if completion.cached:  # kept already, and no cost of this run
                return completion, False
            # A reply that was paid for is recorded even when its caller is cancelled meanwhile.
            self._writing[key] = task = asyncio.create_task(self._record(key, completion))
            # It may have nobody who asks how it ended; asyncio would complain.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.shield(task)
        return completion, False

    async def close(self) -> None:
        """Wait for the records under way: their callers may be gone. Raises the journal's error,
        as a rule a `StoreError`, when one of its replies could not be kept."""
        if self._writing:
            await asyncio.wait(self._writing.values())
        if self._unkept is not None:
            raise self._unkept

    async def _ask(self, request: Request) -> Completion:
        """A reply without the ids that would spell a secret: the same when it is given out for the
        first time as when it is read back."""
        return guarded(request, await self._inner.complete(request), self._redact)

    async def _record(self, key: str, completion: Completion) -> None:
        try:
            await self._journal.add_call(key, completion)
        except asyncio.CancelledError:
            self._unkept = StoreError(
                "a reply that was paid for was not kept: its write was stopped"
            )
            raise
        except Exception as error:
            self._unkept = error
            raise
        finally:
            del self._writing[key]
