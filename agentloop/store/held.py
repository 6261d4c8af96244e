"""Work under a lease: a name in, the right to act under it for as long as a block runs.

The decision worth knowing: a holder that finds its lease taken by another (it was stopped, or its
machine slept) has its work cancelled, so that two never go on doing the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from agentloop.errors import StoreError
from agentloop.store.leases import LeaseHeld, LeaseLost, holder
from agentloop.store.log import Log
from agentloop.store.query import Fence

LEASE_SECONDS = 120.0
"""Renewed three times in it; a holder that was killed is noticed at once, one that hangs, then."""
_LOOKS = 10
"""How often in the time of a lease one who waits looks whether it is free."""


@asynccontextmanager
async def leased(
    log: Log, name: str, ttl: float = LEASE_SECONDS, *, waiting: Callable[[str], None] | None = None
) -> AsyncIterator[Fence]:
    """Hold the lease while the block runs, renewed well before it would expire.

    Held by another, it raises `LeaseHeld`; with `waiting` it waits, and tells it why, once. A lease
    that is lost meanwhile cancels the block and raises `LeaseLost`.
    """
    fence = name, await _take(log, name, ttl, waiting)
    owner = asyncio.current_task()
    assert owner is not None
    before = owner.cancelling()
    lost: list[LeaseLost] = []

    async def renew() -> None:
        while not lost:
            await asyncio.sleep(ttl / 3)
            try:
                await asyncio.to_thread(log.renew, *fence, ttl)
            except LeaseLost as error:
                lost.append(error)
                owner.cancel()
            except StoreError:  # a full disk: the lease is good until another takes it
                continue

    heart = asyncio.create_task(renew())
    try:
        yield fence
    except (asyncio.CancelledError, LeaseLost):
        if lost and owner.uncancel() <= before:  # not cancelled by anybody else as well
            raise lost[0] from None
        raise
    finally:
        heart.cancel()
        with suppress(StoreError):  # a full disk: it ends with this process, or expires
            log.release(*fence)


async def _take(log: Log, name: str, ttl: float, waiting: Callable[[str], None] | None) -> int:
    told = False
    while True:
        try:
            return log.lease(name, holder(), ttl)
        except LeaseHeld as error:
            if waiting is None:
                raise
            if not told:
                waiting(str(error))
            told = True
        await asyncio.sleep(min(5.0, ttl / _LOOKS))
