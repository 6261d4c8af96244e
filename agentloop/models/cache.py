"""The response cache: a request that was answered before, word for word, is not paid again.

In: a `Request`; out: its `Completion`, marked `cached` and free when an earlier run had it. Only
requests that fix their answer (a seed, or temperature 0) are kept: any other asks for a new sample.
"""

from __future__ import annotations

from dataclasses import replace

from agentloop.models.journal import Journal, Journaled
from agentloop.ports import Model
from agentloop.records import Completion, Request, content_id


class Cached:
    """A model with a response cache. It stands outside the meter: what it knows costs nothing."""

    def __init__(self, inner: Model, kept: Journal, *, identity: str) -> None:
        """`identity` says which model answers (address and name): another one's replies are never
        given out. `kept` is durable and shared by runs."""
        self._inner, self._identity = inner, identity
        self._known = Journaled(inner, kept)

    async def complete(self, request: Request) -> Completion:
        """One reply. A known one keeps the token counts of its first call, since limits and
        comparisons go by them, but has no calls and no dollars."""
        sampling = request.sampling
        if sampling.temperature > 0 and sampling.seed is None:
            return await self._inner.complete(request)
        key = content_id("reply", self._identity, replace(request, key=""))
        completion, known = await self._known.recall(key, request)
        if not known:
            return completion
        usage = replace(completion.usage, calls=0, usd=0.0, unpriced=0)
        return replace(completion, cached=True, usage=usage)

    async def close(self) -> None:
        """Wait for the records under way."""
        await self._known.close()
