"""A canary from its start to its end: what the log says of it, and what follows from that.

Goes in: the aliases of a workflow and the scores of its live conversations. Comes out: a decision
row with the raw numbers, and the alias that it moves. Decision: a conversation counts once, with
the first of its signals that settles it (feedback at once; the workflow's own live reward when no
feedback came for a while), so that what was counted never changes and the test holds at any time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from agentloop.errors import UsageError
from agentloop.gates.live import Side, Standing, judge
from agentloop.records import Bundle, Json, record
from agentloop.store.archive import Archive
from agentloop.store.leases import holder
from agentloop.store.query import Draft, Query
from agentloop.workflows.assemble import alias_of, canary_of
from agentloop.workflows.schema import Serve

FEEDBACK = "feedback"
"""The reward spec of what clients say."""
LIVE = "live"
"""The reward spec of `serve.reward`."""
DECISION = "canary"
"""The kind of the log's rows that hold a decision."""
_LEASE_SECONDS = 30.0


@record
class Canary:
    """One that is running."""

    bundle: str
    champion: str
    since: int
    """Scores after this entry of the log count: the later of the two aliases' last moves."""
    name: str
    """Of the alias row that began it."""


def begin(archive: Archive, workflow: str, bundle: str, *, reason: str) -> str:
    """Let a bundle be the canary; its whole id. Raises `UsageError` when there is no champion or
    it is the champion, `UnknownName` when there is no such bundle."""
    champion = archive.alias(alias_of(workflow))
    if champion is None:
        raise UsageError(f"`{workflow}` has no champion in this home yet; run: agentloop serve")
    bundle = archive.id(bundle, Bundle)
    if bundle == champion.bundle:
        raise UsageError(f"{bundle} is the champion of `{workflow}` already; name another bundle")
    archive.point(canary_of(workflow), bundle, reason=reason, scope=workflow)
    return bundle


def running(archive: Archive, workflow: str) -> Canary | None:
    """The canary of a workflow, if there is one beside the champion."""
    canary = archive.log.latest("alias", f"{canary_of(workflow)}#")
    champion = archive.log.latest("alias", f"{alias_of(workflow)}#")
    if canary is None or champion is None:
        return None
    now: Any = canary.body
    serving: Any = champion.body
    if now.get("over") or now["bundle"] == serving["bundle"]:
        return None
    return Canary(
        bundle=now["bundle"], champion=serving["bundle"], since=max(canary.seq, champion.seq),
        name=canary.key,
    )  # fmt: skip


def standing(
    archive: Archive, workflow: str, canary: Canary, settings: Serve, *, now: float | None = None
) -> Standing:
    """What the log's signals say up to `now` (Unix seconds)."""
    rewards = signals(archive, workflow, canary, settings.patience, now=now)
    return judge(rewards, alpha=settings.alpha, most=settings.pairs)


@dataclass
class _Signals:
    feedback: tuple[float, float] | None = None
    reward: tuple[float, float] | None = None
    """When it came, and what it was."""

    def settled(self, patience: float) -> tuple[float, float]:
        """When the conversation counts, and with what."""
        if self.reward is None:
            assert self.feedback is not None
            return self.feedback
        due = self.reward[0] + patience
        if self.feedback is not None and self.feedback[0] <= due:
            return self.feedback
        return due, self.reward[1]


def signals(
    archive: Archive, workflow: str, canary: Canary, patience: float, *, now: float | None = None
) -> list[tuple[Side, float]]:
    """Rewards of conversations that began and were logged since the canary did, in the order in
    which they settled."""
    found: dict[str, _Signals] = {}
    query = Query(kinds=("score",), scope=workflow, since_seq=canary.since)
    for entry in archive.read(query):
        body: Any = entry.body
        if body["spec"] not in (FEEDBACK, LIVE):
            continue
        one = found.setdefault(body["episode"], _Signals())
        came = entry.at, float(body["score"]["value"])
        if body["spec"] == FEEDBACK:
            one.feedback = one.feedback or came
        else:
            one.reward = one.reward or came
    bundles: dict[Side, str] = {"champion": canary.champion, "canary": canary.bundle}
    side_of: dict[str, Side] = {}
    for side, bundle in bundles.items():
        chosen = Query(
            kinds=("episode",), scope=workflow, purpose="serve", bundle=bundle,
            since_seq=canary.since,
        )  # fmt: skip
        side_of |= dict.fromkeys(archive.log.chosen(chosen, list(found)), side)
    until = time.time() if now is None else now
    settled = [(*found[name].settled(patience), name, side) for name, side in side_of.items()]
    settled.sort(key=lambda one: (one[0], one[2]))  # never by value: ties must not lean
    return [(side, value) for at, value, _, side in settled if at <= until]


def decide(archive: Archive, workflow: str, settings: Serve) -> Standing | None:
    """Judge the canary that is running and act on it; what was decided, if anything was."""
    canary = running(archive, workflow)
    if canary is None:
        return None
    found = standing(archive, workflow, canary, settings)
    if found.action == "keep":
        return None
    act(archive, workflow, canary, found)
    return found


def act(archive: Archive, workflow: str, canary: Canary, decided: Standing) -> None:
    """Write the decision, then move the aliases; done again after a crash in between it does the
    rest. Raises `StoreError` when another process is at it."""
    name = f"canary/{workflow}"
    fence = name, archive.log.lease(name, holder(), _LEASE_SECONDS)
    try:
        if running(archive, workflow) != canary:
            return  # moved meanwhile: what was decided is about another pair of bundles
        body: dict[str, Json] = {
            "action": decided.action, "reason": decided.reason, "canary": canary.bundle,
            "champion": canary.champion, "pairs": decided.pairs,
            "champion_mean": decided.champion_mean, "canary_mean": decided.canary_mean,
            "gain": decided.gain, "harm": decided.harm, "differences": list(decided.differences),
        }  # fmt: skip
        row = Draft(kind=DECISION, key=f"{canary.name}/{canary.since}", body=body, scope=workflow)
        archive.log.append([row], fence=fence)
        if decided.action == "promote":
            archive.point(
                alias_of(workflow), canary.bundle, reason=f"canary {decided.reason}",
                scope=workflow, fence=fence,
            )  # fmt: skip
        archive.retire(canary_of(workflow), reason=f"canary {decided.reason}", fence=fence)
    finally:
        archive.log.release(*fence)


def decisions(archive: Archive, workflow: str) -> list[dict[str, Any]]:
    """Every decision, oldest first, with the Unix time at which it was made."""
    rows = archive.read(Query(kinds=(DECISION,), scope=workflow))
    return [{"at": row.at, **row.body} for row in rows if isinstance(row.body, dict)]
