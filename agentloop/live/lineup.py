"""The bundles that answer: the champion, the canary, and those whose conversations still go on.

In: the log's aliases, looked at again and again. Out: the bundle for a new conversation. A bundle
that was promoted or rolled back by any process serves once its policy is loaded; a policy is
unloaded when no conversation needs it. Decision: when a bundle cannot be loaded, the one that
serves goes on serving, and says so.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from agentloop.errors import AgentLoopError
from agentloop.gates.live import Side
from agentloop.lanes.bench import Bench, Ready
from agentloop.records import Json
from agentloop.workflows.assemble import alias_of, canary_of

_AGAIN = 30.0
"""Seconds before a bundle that could not be loaded is tried again."""

Say = Callable[[str], None]
"""Told in one sentence what changed."""


@dataclass
class _Unready:
    bundle: str
    error: str
    again: float


class Lineup:
    """The bundles of one workflow on one bench; belongs to its event loop."""

    def __init__(self, bench: Bench, *, share: float, say: Say) -> None:
        """`share` of new conversations go to the canary while there is one."""
        self._bench, self._share, self._say = bench, share, say
        self._sides: dict[Side, Ready] = {}
        self._held: Counter[str] = Counter()
        self._ready: dict[str, Ready] = {}
        self._failed: dict[Side, _Unready] = {}
        self._unneeded: set[str] = set()  # policies that the server may still hold
        self._lock = asyncio.Lock()
        self.swaps = 0
        """How often a side was given another bundle since the start."""

    async def start(self) -> None:
        """Make the champion ready. Raises what makes that impossible."""
        champion = await self._bench.ready(self._bench.bundle(self._bench.champion))
        self._ready[champion.bundle] = self._sides["champion"] = champion
        await self.refresh()
        self.swaps = 0

    async def refresh(self) -> None:
        """Follow the aliases. Raises `StoreError` when they cannot be read: nothing changes."""
        await self._look(await asyncio.to_thread(self._wanted))

    def choose(self, unit: str) -> Ready:
        """The bundle for a new conversation: always the same for the same unit (its name, or what
        it begins with)."""
        canary = self._sides.get("canary")
        if canary is not None:
            digest = hashlib.blake2b(f"{canary.bundle}/{unit}".encode(), digest_size=8)
            if int.from_bytes(digest.digest(), "big") < self._share * 2**64:
                return canary
        return self._sides["champion"]

    @property
    def choice(self) -> dict[str, Json]:
        """The bundles of which one is chosen, by side; empty without a canary."""
        if "canary" not in self._sides:
            return {}
        return {side: ready.bundle for side, ready in self._sides.items()}

    def hold(self, ready: Ready) -> None:
        """A conversation goes on under this bundle."""
        self._held[ready.bundle] += 1

    def release(self, ready: Ready) -> None:
        """It does no longer; the policy is let go of at the next look."""
        self._held[ready.bundle] -= 1

    def bundle(self, side: Side) -> str | None:
        """What serves there."""
        ready = self._sides.get(side)
        return None if ready is None else ready.bundle

    @property
    def trouble(self) -> list[str]:
        """Bundles that should serve and cannot be loaded."""
        return [failed.error for failed in self._failed.values()]

    def _wanted(self) -> dict[Side, str]:
        archive, name = self._bench.archive, self._bench.workflow
        champion, canary = archive.alias(alias_of(name)), archive.alias(canary_of(name))
        wanted: dict[Side, str] = {}
        if champion is not None:
            wanted["champion"] = champion.bundle
        if canary is not None and canary.bundle != wanted.get("champion"):
            wanted["canary"] = canary.bundle
        return wanted

    async def _look(self, wanted: dict[Side, str]) -> None:
        async with self._lock:
            if "canary" not in wanted:
                self._failed.pop("canary", None)
            if self.bundle("canary") not in (None, wanted.get("canary")):
                # At once, whatever becomes of the next one: it may have been ended for harm.
                del self._sides["canary"]
                self.swaps += 1
                self._say("canary: ended")
            for side, bundle in wanted.items():
                ready = await self._make(side, bundle)
                if ready is not None and self._sides.get(side) is not ready:
                    self._sides[side] = ready
                    self.swaps += 1
                    self._say(f"{side}: {bundle} serves")
            await self._tidy()

    async def _make(self, side: Side, bundle: str) -> Ready | None:
        """The bundle, loaded; `None` when it cannot be."""
        failed = self._failed.get(side)
        if bundle in self._ready:
            self._failed.pop(side, None)
            return self._ready[bundle]
        if failed and failed.bundle == bundle and time.monotonic() < failed.again:
            return None
        try:
            ready = await self._bench.ready(self._bench.bundle(bundle))
        except (AgentLoopError, OSError) as error:
            serving = self._sides["champion"].bundle
            text = f"{side}: {bundle} cannot be served: {error}; {serving} goes on serving"
            if failed is None or failed.error != text:
                self._say(text)
            self._failed[side] = _Unready(bundle, text, time.monotonic() + _AGAIN)
            return None
        self._failed.pop(side, None)
        self._ready[bundle] = ready
        return ready

    async def _tidy(self) -> None:
        """Let go of bundles that nobody needs, and of their policies."""
        serving = {ready.bundle for ready in self._sides.values()}
        for bundle in [one for one in self._ready if one not in serving and not self._held[one]]:
            policy = self._ready.pop(bundle).policy
            if policy is not None:
                self._unneeded.add(policy)
        self._held = +self._held
        self._unneeded -= {ready.policy for ready in self._ready.values()}
        if self._bench.server is not None:
            for policy in sorted(self._unneeded):
                await self._bench.server.unload_policy(policy)
                self._unneeded.discard(policy)  # else again at the next look
