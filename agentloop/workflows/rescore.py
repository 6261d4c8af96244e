"""Stored rollouts under another grader: read, graded in batches, their scores appended.

Goes in: a workflow's grader (or another) and the log. Comes out: scores under a name of their own,
and counts. Nothing is asked of a model: a grader reads what was stored. Decision: each batch notes
how far it came, so a killed run goes on from there; the latest score of an episode counts from then
on, and the earlier ones stay.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from agentloop.lanes.bench import score
from agentloop.ports import Progress, Reward, silent
from agentloop.records import AGENT_REASONS, Episode, Json, content_id, record
from agentloop.store.archive import Archive
from agentloop.store.query import Entry, Query
from agentloop.workflows.load import Loaded, build
from agentloop.workflows.schema import PartSpec

BATCH = 500
"""Episodes that are graded, and appended, together; more where a group of samples, which a run
writes side by side, would be cut."""
_KIND = "rescore"


@dataclass(frozen=True)
class Grader:
    """A grader by its name."""

    reward: Reward
    name: str
    """The reference it was made from."""
    version: str
    """Changes with the workflow's files and settings: then a new pass begins."""


@record
class Rescored:
    """Counts of one pass."""

    spec: str
    read: int = 0
    scored: int = 0
    changed: int = 0
    """Whose success is another than before."""
    unscored: int = 0
    """Failures of the infrastructure, and episodes that the grader could not grade."""
    seconds: float = 0.0


def grader_of(loaded: Loaded, reference: str | None) -> Grader:
    """The grader that `reference` names, or the workflow's own. Raises `UsageError`."""
    part = PartSpec(use=reference) if reference else loaded.spec.reward
    return Grader(
        build(part, loaded.folder), part.use,
        content_id("grader", part.use, part.fields, loaded.digest()),
    )  # fmt: skip


async def rescore(
    archive: Archive, workflow: str, grader: Grader, *, progress: Progress = silent
) -> Rescored:
    """Grade every stored episode of `workflow`, or go on with the pass that was cut off."""
    name, since, until = _begin(archive, workflow, grader)
    # Filed by pass, not by grader: going back to an earlier grader must count as well.
    total = Rescored(spec=f"{grader.name}@{name}")
    started = time.monotonic()
    count = len(archive.log.chosen(_query(workflow, since, until)))
    for batch in _batches(archive, _query(workflow, since, until)):
        before = [one.score for _, one in batch]
        bare = [replace(one, score=None) for _, one in batch]
        graded = await score(grader.reward, bare)
        pairs = [(one.id, one.score) for one in graded if one.score is not None]
        await archive.add_scores(pairs, total.spec, scope=workflow)
        archive.add_step(name, f"{batch[-1][0]:012d}", len(batch), scope=workflow)
        flips = sum(
            old is not None and one.score is not None and old.success != one.score.success
            for old, one in zip(before, graded, strict=True)
        )
        total = replace(
            total, read=total.read + len(batch), scored=total.scored + len(pairs),
            changed=total.changed + flips, unscored=total.unscored + len(batch) - len(pairs),
            seconds=round(time.monotonic() - started, 3),
        )  # fmt: skip
        progress("rescore", total.read, count)
    archive.add_step(name, "done", True, scope=workflow)
    return total


def due(archive: Archive, workflow: str, grader: Grader) -> tuple[int, int]:
    """How many episodes are left to read, and how many of them can be graded."""
    _, since, until = _place(archive, workflow, grader)
    found = [_gradable(one) for _, one in archive.each(_query(workflow, since, until))]
    return len(found), sum(found)


def _begin(archive: Archive, workflow: str, grader: Grader) -> tuple[str, int, int]:
    name, since, until = _place(archive, workflow, grader)
    body: dict[str, Json] = {"grader": grader.name, "version": grader.version, "until": until}
    archive.add_event(_KIND, name, workflow, body)
    return name, since, until


def _place(archive: Archive, workflow: str, grader: Grader) -> tuple[str, int, int]:
    """(name of the pass, the entry after which it goes on, the entry at which it ends)."""
    last = archive.log.latest("episode", "")
    end = 0 if last is None else last.seq
    passes: list[Entry] = list(archive.read(Query(kinds=(_KIND,), scope=workflow, newest=True)))
    if passes and isinstance(passes[0].body, dict):
        name, body = passes[0].key, passes[0].body
        if body["version"] == grader.version and archive.step(name, "done") is None:
            step = archive.log.latest("step", f"{name}/")
            since = 0 if step is None else int(step.key.rpartition("/")[2])
            return name, since, int(str(body["until"]))
    return content_id("rescore", workflow, grader.version, len(passes), end), 0, end


def _batches(archive: Archive, query: Query) -> Iterator[list[tuple[int, Episode]]]:
    batch: list[tuple[int, Episode]] = []
    for _, group in groupby(archive.each(query), key=_group):
        batch += group
        if len(batch) >= BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _group(one: tuple[int, Episode]) -> tuple[str, str, str]:
    return one[1].run, one[1].task.id, one[1].bundle


def _query(workflow: str, since: int, until: int) -> Query:
    return Query(kinds=("episode",), scope=workflow, since_seq=since, until=until)


def _gradable(episode: Episode) -> bool:
    return episode.failure is None or episode.failure.reason in AGENT_REASONS
