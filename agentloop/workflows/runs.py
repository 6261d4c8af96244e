"""Runs outside a cycle (`run`, `eval`): named in the log when they begin, so that one that was cut
off can go on.

In: what the run is made of, as one hash. Out: its `Run`. The steps that its rollouts finished are
kept in a folder of the run's own until it is done.
"""

from __future__ import annotations

import shutil
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from agentloop.errors import UsageError
from agentloop.records import Json, Purpose, content_id
from agentloop.store.archive import Archive
from agentloop.store.held import leased
from agentloop.store.query import Fence, Query

_DONE = "done"
FORK = ""
"""The plan of a run of forks: asked for again (`workflows.forks`), never resumed."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run; `bundle` is what it runs, `None` before it has begun."""

    id: str
    plan: str
    purpose: Purpose
    seed: int
    bundle: str | None = None


def open_run(
    archive: Archive, workflow: str, *, purpose: Purpose, seed: int, plan: str, resume: bool
) -> Run:
    """A new run, or with `resume` the newest unfinished one of this workflow, purpose and seed.
    Nothing is written.

    Raises `UsageError` when there is none to resume, or when it began with other options.
    """
    if not resume:
        name = content_id("run", workflow, purpose, seed, time.time_ns())
        return Run(id=name, plan=plan, purpose=purpose, seed=seed)
    for entry in reversed(list(archive.read(Query(kinds=("run",), scope=workflow)))):
        body = entry.body
        assert isinstance(body, dict)
        if (body["purpose"], body["seed"]) != (purpose, seed) or archive.step(entry.key, _DONE):
            continue
        if body["plan"] == FORK:
            continue
        if body["plan"] != plan:
            raise UsageError(
                f"`{workflow}`, its model, its tasks or their number are not those that run "
                f"{entry.key} began with; repeat its options, or leave out --resume"
            )
        bundle = str(body["bundle"])
        return Run(id=entry.key, plan=plan, purpose=purpose, seed=seed, bundle=bundle)
    raise UsageError(
        f"there is no unfinished run of `{workflow}` with seed {seed}; leave out --resume"
    )


def held(archive: Archive, run: Run) -> AbstractAsyncContextManager[Fence]:
    """The right to make this run's rollouts, within the block. Raises `LeaseHeld` while another
    process makes them: two would pay calls twice and remove each other's steps."""
    return leased(archive.log, f"run/{run.id}")


def begin(archive: Archive, workflow: str, run: Run, bundle: str) -> None:
    """Name the run in the log; again is nothing."""
    body: dict[str, Json] = {
        "purpose": run.purpose, "seed": run.seed, "plan": run.plan, "bundle": bundle,
    }  # fmt: skip
    archive.add_event("run", run.id, workflow, body)


def finish(archive: Archive, run: Run, home: Path) -> None:
    """Note that all of it is in the log, and let go of its rollouts' steps."""
    archive.add_step(run.id, _DONE, True)
    shutil.rmtree(checkpoints(home, run.id), ignore_errors=True)


def checkpoints(home: Path, run: str) -> Path:
    """Where the steps of a run's rollouts are kept while it is under way."""
    return home / "checkpoints" / run
