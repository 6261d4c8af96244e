"""What a home no longer needs: facts in, a list of removals out, and the removing.

Never an entry of the log. A version is kept if any alias ever pointed at it (a rollback may go back
there), and so is everything that was made since the oldest of the cycles to keep began: the last so
many that finished, and those that did not, unless a later one of their workflow has finished.
Decision: `removals` is a function of plain facts, so what it would do can be read, tested and shown
before anything is touched.
"""

from __future__ import annotations

import shutil
import stat
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentloop.errors import StoreError
from agentloop.records import Bundle, Dataset, Policy
from agentloop.store.archive import Archive
from agentloop.store.query import Query

_MARGIN = 3600.0
"""Seconds by which a file must be older than what is kept: clocks of a home may differ."""


@dataclass(frozen=True)
class Thing:
    """A directory or file of a home: its folder, its name, when it was last written."""

    folder: str
    name: str
    at: float
    bytes: int = 0


@dataclass(frozen=True)
class Facts:
    """All that decides what goes."""

    things: tuple[Thing, ...] = ()
    needed: frozenset[str] = frozenset()
    """Ids of policies and datasets that a bundle of an alias, with its history, or of a run that is
    not finished, is made of."""
    made: dict[str, int] = field(default_factory=dict)
    """Id of a policy or dataset -> its place in the log."""
    since: tuple[int, float] = (0, 0.0)
    """Place in the log and time at which the oldest cycle to keep began."""
    done: frozenset[str] = frozenset()
    """Runs that are finished."""


@dataclass(frozen=True)
class Removal:
    """What goes, and why, in one phrase."""

    thing: Thing
    why: str


def removals(facts: Facts) -> list[Removal]:
    """What may go, in the order of the things."""
    found = ((thing, _why(facts, thing)) for thing in facts.things)
    return [Removal(thing, why) for thing, why in found if why]


def _why(facts: Facts, thing: Thing) -> str:
    seq, at = facts.since
    old = thing.at < at - _MARGIN
    if thing.folder == "checkpoints":
        return "its run is finished" if thing.name in facts.done else ""
    if not old:
        return ""
    if thing.name.startswith("."):
        return "a draft that was never finished"
    if thing.folder in ("training", "logs"):
        return "written before the cycles that are kept"
    if thing.name in facts.needed or facts.made.get(thing.name, 0) >= seq:
        return ""
    return "no bundle that served has it, and no cycle that is kept made it"


def gather(archive: Archive, home: Path, keep: int) -> Facts:
    """The facts of a home; `keep` is how many finished cycles of each workflow to keep whole."""
    return Facts(
        things=tuple(_things(home)), needed=_needed(archive),
        made={
            entry.key: entry.seq for entry in archive.read(Query(kinds=("policy", "dataset")))
        },
        since=_since(archive, keep),
        done=frozenset(
            entry.key for entry in archive.read(Query(kinds=("run",)))
            if archive.step(entry.key, "done") is not None
        ),
    )  # fmt: skip


def remove(home: Path, found: list[Removal]) -> int:
    """Take them away; bytes that were freed. Raises `StoreError` when the system refuses."""
    freed = 0
    for removal in found:
        path = home / removal.thing.folder / removal.thing.name
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:  # another process took it away meanwhile
            continue
        except OSError as error:
            raise StoreError(f"`{path}` cannot be removed: {error.strerror}") from error
        freed += removal.thing.bytes
    return freed


def _things(home: Path) -> list[Thing]:
    found = []
    for folder in ("checkpoints", "training", "logs", "datasets", "policies"):
        for path in sorted((home / folder).glob("*")):
            with suppress(FileNotFoundError):  # in use: what it is being changed to is kept
                found.append(_thing(folder, path))
    return found


def _thing(folder: str, path: Path) -> Thing:
    files = [one for one in (path, *path.rglob("*")) if not one.is_symlink()]
    states = [one.stat() for one in files]
    return Thing(
        folder, path.name, max((one.st_mtime for one in states), default=0.0),
        sum(one.st_size for one in states if stat.S_ISREG(one.st_mode)),
    )  # fmt: skip


def _needed(archive: Archive) -> frozenset[str]:
    aliases = {key.rpartition("#")[0] for key in archive.log.keys("alias")}  # retired ones too
    bundles = {one.bundle for name in aliases for one in archive.alias_history(name)}
    bundles.update(_running(archive))
    policies = {
        name for bundle in bundles for name in archive.get(bundle, Bundle).policies.values()
    }
    known = {name: policy for name, policy, _ in archive.artifacts(Policy)}
    datasets = {known[name].dataset for name in policies if name in known}
    datasets |= _before(archive, {name for name in datasets if name is not None})
    return frozenset(policies | {name for name in datasets if name is not None})


def _running(archive: Archive) -> Iterator[str]:
    """The bundles of runs that may go on."""
    for entry in archive.read(Query(kinds=("run",))):
        if archive.step(entry.key, "done") is None:
            body: Any = entry.body
            yield from archive.log.keys("bundle", body["bundle"])


def _before(archive: Archive, names: set[str]) -> set[str]:
    """The datasets that these went on from, and those before them."""
    known = {name: dataset for name, dataset, _ in archive.artifacts(Dataset)}
    found: set[str] = set()
    left = list(names)
    while left:
        dataset = known.get(left.pop())
        after = dataset.spec.get("after") if dataset else None
        new = {str(one) for one in after} - found if isinstance(after, list) else set()
        found |= new
        left += new
    return found


def _since(archive: Archive, keep: int) -> tuple[int, float]:
    """Where the oldest cycle to keep began; with none, the end of the log."""
    finished: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    left: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for entry in archive.read(Query(kinds=("cycle",))):
        ended = archive.step(entry.key, "report") is not None
        (finished if ended else left)[entry.scope].append((entry.seq, entry.at))
    kept: list[tuple[int, float]] = []
    for workflow in {*finished, *left}:
        done = finished[workflow]
        kept += done[max(0, len(done) - keep) :]
        kept += [one for one in left[workflow] if not done or one > done[-1]]
    if kept:
        return min(kept)
    last = list(archive.read(Query(newest=True, limit=1)))
    return (last[0].seq + 1, last[0].at) if last else (0, 0.0)
