"""Trajectories from one home to another: export and import.

Goes in: a log. Comes out: a file (`store.portable`); or, the other way, its entries in another log.
Decision: what is taken along is what was recorded and what it was made with, never what steers a
home (aliases, cycles, leases) nor weights: a file from anybody cannot change what is served, nor
stand in for what this home has still to do. A file is read to its end before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

from agentloop.errors import StoreError, UsageError
from agentloop.records import Episode, Json, attempt_of
from agentloop.store.log import Log
from agentloop.store.portable import KINDS, bad, ending, entries, named, packed, write
from agentloop.store.query import Draft, Entry, Query
from agentloop.trajectories.codec import from_json

_BATCH = 1000
FOREIGN = "foreign"
"""Kind of the entry that says that a run was imported."""
FORK = "fork"
"""Scope of the replies that a fork took over: no run paid for them a second time."""


@dataclass(frozen=True)
class Exported:
    """Counts: entries written; rollouts left out, whose names do not say what they are of."""

    rows: int
    left: int = 0


@dataclass(frozen=True)
class Imported:
    """Counts: written; already there; left out, because another stands under the name or it would
    add to a run of this home's own."""

    new: int = 0
    known: int = 0
    left: int = 0


def export(
    log: Log, path: Path, *, workflow: str | None = None, run: str | None = None
) -> Exported:
    """Write the entries of the log, or those of one workflow or run, to a new file, which appears
    whole or not at all. Raises `UsageError` when it exists or its name has another ending,
    `StoreError` when it cannot be written."""
    ending(path)
    if path.exists():
        raise UsageError(f"`{path}` exists; give another name")
    chosen = _choose(log, workflow, run)
    draft = path.with_name(f".{path.name}.part")
    try:
        with open(os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600), "wb") as file:
            with packed(file, path) as out:
                count = write(out, _entries(log, chosen))
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # unlike a rename, never over a file that came meanwhile
    except OSError as error:
        raise StoreError(f"`{path}` cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return Exported(count, chosen.left)


def load(log: Log, path: Path) -> Imported:
    """Append what the file has and the log has not. The first write of a name stays, so a second
    import changes nothing, and nothing is added to a run of this home's own. Raises `UsageError`
    that names the line of what is damaged or does not belong; then nothing was written. A disk that
    fills up on the way leaves what came before it: import the file again."""
    held = check(path)
    own = {run for run in held.runs.values() if _own(log, run)}
    done, read = Imported(), 0
    drafts = entries(path)
    while batch := list(islice(drafts, _BATCH)):
        read += len(batch)
        batch = [_scoped(held, one) for one in batch]
        here = [log.get(one.kind, one.key) for one in batch]
        same = sum(
            entry is not None and entry.body == log.redact(one.body)
            for entry, one in zip(here, batch, strict=True)
        )
        new = [
            one
            for entry, one in zip(here, batch, strict=True)
            if entry is None and not _theirs(log, held, one) & own
        ]
        log.append([*_marks(new), *new])
        left = len(batch) - len(new) - same
        done = Imported(done.new + len(new), done.known + same, done.left + left)
    if read != held.rows:
        raise UsageError(f"`{path}` was changed while it was read; import it again")
    return done


@dataclass
class Held:
    """What is in a file: its entries, and the run of each rollout, by the rollout's id and by that
    of the order that it is the result of."""

    rows: int = 0
    runs: dict[str, str] = field(default_factory=dict)


def check(path: Path) -> Held:
    """Look at every entry of an exported file. A reply or a score must belong to a rollout of the
    file, a reply to one whose name follows from what it was given: under another name it would be
    told to some rollout to come. Raises `UsageError`."""
    held = Held()
    told: dict[str, int] = {}
    scored: dict[str, int] = {}
    ordered: set[str] = set()
    for number, draft in enumerate(entries(path), 2):
        held.rows += 1
        if draft.kind == "call":
            told.setdefault(draft.key.rpartition("/")[0], number)
        elif draft.kind == "score":
            scored.setdefault(_scored(draft), number)
        elif draft.kind == "episode":
            episode = from_json(Episode, draft.body)
            order = attempt_of(episode).id
            held.runs[episode.id] = held.runs[order] = episode.run
            ordered.add(order)
    lost = [line for name, line in told.items() if name not in ordered]
    lost += [line for name, line in scored.items() if name not in held.runs]
    if lost:
        raise bad(path, min(lost), "belongs to no rollout of the file")
    return held


def foreign(log: Log, run: str) -> bool:
    """Whether the rollouts of this run (or cycle) were imported: its name is taken."""
    return log.get(FOREIGN, run) is not None


def _own(log: Log, run: str) -> bool:
    if foreign(log, run):
        return False
    begun = any(log.get(kind, run) is not None for kind in ("run", "cycle"))
    return begun or bool(log.chosen(Query(kinds=("episode",), run=run)))


def _theirs(log: Log, held: Held, draft: Draft) -> set[str]:
    """The runs that an entry would add to; a version adds to none."""
    if draft.kind == "score":
        episode = log.get("episode", _scored(draft))
        return {held.runs[_scored(draft)], *([_run(episode.body)] if episode else ())}
    if draft.kind == "call":
        return {held.runs[draft.key.rpartition("/")[0]]}
    return {_run(draft.body)} if draft.kind == "episode" else {draft.key}


def _scoped(held: Held, draft: Draft) -> Draft:
    """A reply was paid for by the run of its rollout, whatever the file says."""
    if draft.kind != "call" or draft.scope == FORK:
        return draft
    return replace(draft, scope=held.runs[draft.key.rpartition("/")[0]])


def _marks(new: list[Draft]) -> list[Draft]:
    """Notes that the runs of these entries are not this home's: nobody here goes on with them."""
    begun = [one.key for one in new if one.kind == "run"]
    runs = {_run(one.body) for one in new if one.kind == "episode"}.union(begun)
    return [
        *(Draft(kind=FOREIGN, key=run, body=True) for run in sorted(runs)),
        *(Draft(kind="step", key=f"{run}/done", body=True) for run in begun),
    ]


def _run(body: Json) -> str:
    return str(cast(dict[str, Any], body)["run"])


def _scored(draft: Draft) -> str:
    return str(cast(dict[str, Any], draft.body)["episode"])


@dataclass
class _Chosen:
    """What goes into a file, by name; `parts` is `None` for all versions."""

    episodes: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)
    orders: set[str] = field(default_factory=set)
    parts: set[str] | None = None
    left: int = 0


def _choose(log: Log, workflow: str | None, run: str | None) -> _Chosen:
    chosen, bundles, found = _Chosen(), set[str](), False
    for entry in log.read(Query(kinds=("episode",), scope=workflow, run=run)):
        found = True
        if not named(entry):
            chosen.left += 1
            continue
        episode = from_json(Episode, entry.body)
        chosen.episodes.add(entry.key)
        chosen.runs.add(episode.run)
        chosen.orders.add(attempt_of(episode).id)
        bundles.add(episode.bundle)
    if not found and (workflow or run):
        raise UsageError(f"there are no rollouts of `{run or workflow}` in this home")
    if workflow is not None or run is not None:
        chosen.parts = _parts(log, bundles)
    return chosen


def _entries(log: Log, chosen: _Chosen) -> Iterator[Entry]:
    """In log order: rollouts with their scores, replies, runs and versions. Left out are replies
    that no rollout ended with, and versions from which a secret was taken after they were named."""
    for entry in log.read(Query(kinds=KINDS)):
        kind, key = entry.kind, entry.key
        if kind == "episode":
            one_of_them = key in chosen.episodes
        elif kind == "score":
            one_of_them = key.partition("/")[0] in chosen.episodes
        elif kind == "call":
            one_of_them = key.rpartition("/")[0] in chosen.orders
        elif kind == "run":
            one_of_them = key in chosen.runs
        else:
            one_of_them = chosen.parts is None or key in chosen.parts
        if one_of_them and (kind == "episode" or named(entry)):
            yield entry


def _parts(log: Log, bundles: set[str]) -> set[str]:
    """The bundles and what they are made of."""
    found = set(bundles)
    for name in bundles:
        entry = log.get("bundle", name)
        if entry is not None:
            body = cast(dict[str, Any], entry.body)
            found |= {body["instruction"], *body.get("skills", ())}
            found |= set(body.get("policies", {}).values())
    return found
