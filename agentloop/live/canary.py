"""A canary from its start to its end: what the log says of it, and what follows from that.

Goes in: the aliases of a workflow and the rewards of its conversations (`signals`). Comes out: a
decision row with the raw numbers, and the aliases that it moves. Decision: row and aliases are one
write that follows from the state that was judged, so that a crash or another process in between
leaves either all of it or nothing.
"""

from __future__ import annotations

from typing import Any

from agentloop.errors import UsageError
from agentloop.gates.live import Standing, judge
from agentloop.live.signals import Canary, Signals
from agentloop.records import Bundle, Json, record
from agentloop.store.archive import Archive
from agentloop.store.query import Draft, Fences, Query
from agentloop.store.versions import following
from agentloop.workflows.assemble import alias_of, canary_of
from agentloop.workflows.schema import Serve

DECISION = "canary"
"""The kind of the log's rows that hold a decision."""


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


def offer(archive: Archive, workflow: str, bundle: str, *, reason: str, fence: Fences) -> str:
    """Let what a cycle found be the canary; why not, while another one is being judged."""
    now = running(archive, workflow)
    if now is not None:
        return f"{now.bundle} is the canary and is judged first"
    archive.point(canary_of(workflow), bundle, reason=reason, scope=workflow, fence=fence)
    return ""


def running(archive: Archive, workflow: str) -> Canary | None:
    """The canary of a workflow, if there is one beside the champion."""
    canary, champion = _rows(archive, workflow)
    if canary is None or champion is None or canary.bundle == champion.bundle:
        return None
    return Canary(
        bundle=canary.bundle, champion=champion.bundle, since=max(canary.seq, champion.seq),
        name=canary.key, champion_name=champion.key,
    )  # fmt: skip


@record
class _Row:
    """Where an alias points, and the log's row that says so."""

    seq: int
    key: str
    bundle: str


def _rows(archive: Archive, workflow: str) -> tuple[_Row | None, _Row | None]:
    """Of the canary and of the champion; `None` where there is none."""
    found: list[_Row | None] = []
    for alias in (canary_of(workflow), alias_of(workflow)):
        entry = archive.log.latest("alias", f"{alias}#")
        body: Any = entry.body if entry is not None else {}
        if entry is None or body.get("over"):
            found.append(None)
        else:
            found.append(_Row(seq=entry.seq, key=entry.key, bundle=body["bundle"]))
    return found[0], found[1]


def standing(
    archive: Archive, workflow: str, canary: Canary, settings: Serve,
    signals: Signals | None = None,
) -> Standing:  # fmt: skip
    """What the rewards say that the log has; `signals` of earlier looks save reading them again."""
    signals = signals or Signals(archive, workflow, settings.patience)
    return judge(signals.of(canary), alpha=settings.alpha, most=settings.pairs)


def decide(
    archive: Archive, workflow: str, settings: Serve, signals: Signals | None = None
) -> Standing | None:
    """Judge the canary that is running and act on it; what was decided, if anything was."""
    canary = running(archive, workflow)
    if canary is None:
        _tidy(archive, workflow)
        return None
    found = standing(archive, workflow, canary, settings, signals)
    if found.action == "keep":
        return None
    act(archive, workflow, canary, found)
    return found


def act(archive: Archive, workflow: str, canary: Canary, decided: Standing) -> None:
    """Write the decision and move the aliases, if they still are what was judged. Raises
    `StoreError` when they are moved at this very moment."""
    if running(archive, workflow) == canary:
        archive.move(*_outcome(workflow, canary, decided))


def _outcome(workflow: str, canary: Canary, decided: Standing) -> list[Draft]:
    """The decision and the moves that follow from it."""
    body: dict[str, Json] = {
        "action": decided.action, "reason": decided.reason, "canary": canary.bundle,
        "champion": canary.champion, "pairs": decided.pairs,
        "champion_mean": decided.champion_mean, "canary_mean": decided.canary_mean,
        "gain": decided.gain, "harm": decided.harm, "differences": list(decided.differences),
    }  # fmt: skip
    why, bundle = f"canary {decided.reason}", canary.bundle
    key = f"{canary.name}/{canary.since}"
    rows = [
        Draft(kind=DECISION, key=key, body=body, scope=workflow),
        following(canary.name, bundle, reason=why, scope=workflow, over=True),
    ]
    if decided.action == "promote":
        rows.append(following(canary.champion_name, bundle, reason=why, scope=workflow))
    return rows


def _tidy(archive: Archive, workflow: str) -> None:
    """A canary that became the champion otherwise is over: else it would be the canary again once
    the champion is rolled back."""
    canary, champion = _rows(archive, workflow)
    if canary and champion and canary.bundle == champion.bundle:
        reason = "it is the champion"
        archive.move(following(canary.key, canary.bundle, reason=reason, scope=workflow, over=True))


def decisions(archive: Archive, workflow: str) -> list[dict[str, Any]]:
    """Every decision, oldest first, with the Unix time at which it was made."""
    rows = archive.read(Query(kinds=(DECISION,), scope=workflow))
    return [{"at": row.at, **row.body} for row in rows if isinstance(row.body, dict)]
