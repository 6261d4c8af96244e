"""Commands on what was recorded: runs list, show, replay, fork, rescore.

Goes in: a home and the id of a run, a cycle or one rollout (a unique prefix will do). Comes out:
tables, or one JSON document. Replaying and rescoring ask no model; a fork does, from its step on.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from agentloop.cli import options as opt
from agentloop.cli import show
from agentloop.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from agentloop.records import Episode
    from agentloop.store.archive import Archive
    from agentloop.store.query import Entry

runs = typer.Typer(help="Recorded runs: list, replay, fork, rescore.", no_args_is_help=True)
RunId = Annotated[str, typer.Argument(help="A run, a cycle or a rollout.", metavar="ID")]
Episode_ = Annotated[str, typer.Argument(help="A rollout.", metavar="ID")]
Of = Annotated[
    str | None,
    typer.Option("--workflow", help="Where its workflow is, when not under its name."),
]
_SHOWN = 20


@runs.command("list")
def list_runs(home: opt.Home = None, as_json: opt.AsJson = False) -> int:
    """Runs and cycles, newest last."""
    archive = opt.open_archive(home)
    rows = [_row(archive, entry) for entry in _runs(archive)]
    if as_json:
        opt.print_json(rows)
    elif not rows:
        show.tell("no runs in this home yet; make one: agentloop run WORKFLOW", style="dim")
    else:
        columns = ["id", "workflow", "what", "begun", "rollouts", "solved", "failed", "state"]
        show.console().print(show.table("runs", columns, [
            (show.short(str(r["id"])), r["workflow"], r["what"], _when(float(str(r["begun"]))),
             r["rollouts"], r["solved"], r["failed"], r["state"])
            for r in rows
        ]))  # fmt: skip
    return 0


@runs.command("show")
def show_run(id: RunId, home: opt.Home = None, as_json: opt.AsJson = False) -> int:
    """One run: its rollouts, with parent and step of the forked ones."""
    archive = opt.open_archive(home)
    entry, episodes = _find(archive, id)
    rows = [
        {"id": e.id, "task": e.task.id, "state": _state(e), "calls": e.usage.calls,
         "tokens": e.usage.tokens, "parent": e.setup.parent if e.setup else "",
         "step": e.setup.step if e.setup and e.setup.parent else None}
        for e in episodes
    ]  # fmt: skip
    if as_json:
        about = {} if entry is None else _row(archive, entry)
        opt.print_json({**about, "episodes": rows})
        return 0
    columns = ["id", "task", "state", "calls", "tokens", "parent", "step"]
    title = id if entry is None else f"{entry.key} of {entry.scope}"
    show.console().print(show.table(title, columns, [
        (show.short(str(r["id"])), r["task"], r["state"], r["calls"], r["tokens"],
         show.short(str(r["parent"]) or None), r["step"])
        for r in rows
    ]))  # fmt: skip
    return 0


@runs.command()
def replay(
    id: RunId, workflow: Of = None, home: opt.Home = None, workspace: opt.Space = None,
    as_json: opt.AsJson = False,
) -> int:  # fmt: skip
    """Run it again offline, on its record, and compare bit for bit. Exit code 1 on a difference."""
    from agentloop.workflows.load import load
    from agentloop.workflows.rerun import Replays
    from agentloop.workspace import Workspace

    archive = opt.open_archive(home)
    _, episodes = _find(archive, id)
    space = Workspace.find(workspace)
    replays = Replays(archive, load(workflow or _scope(archive, episodes[0]), space), space)

    async def all_of_them() -> list[dict[str, str]]:
        return [asdict(await replays.replay(one)) for one in episodes]

    done = asyncio.run(all_of_them())
    by_state = {
        state: sum(one["state"] == state for one in done)
        for state in ("identical", "different", "impossible")
    }
    if as_json:
        opt.print_json({**by_state, "episodes": done})
    else:
        told = [one for one in done if one["reason"]]
        for one in told[:_SHOWN]:
            show.tell(f"{one['episode']}: {one['state']}: {one['reason']}")
        if len(told) > _SHOWN:
            show.tell(f"and {len(told) - _SHOWN} more; see them with --json", style="dim")
        counts = ", ".join(f"{count} {state}" for state, count in by_state.items() if count)
        show.tell(counts, style="bold")
    return 0 if by_state["identical"] and not by_state["different"] else 1


@runs.command(short_help="Go on live from a recorded step.")
def fork(
    id: Episode_,
    at: Annotated[int, typer.Option("--at", min=0, help="The first model call that is made live.")],
    n: Annotated[int, typer.Option("--n", min=1, help="How many forks.")] = 1,
    bundle: Annotated[
        str, typer.Option("--bundle", help="same (as the rollout's), champion, or an id.")
    ] = "same",
    workflow: Of = None, model: opt.ModelName = None, home: opt.Home = None,
    workspace: opt.Space = None, as_json: opt.AsJson = False, dry_run: opt.DryRun = False,
    settings: opt.Settings = None,
) -> int:  # fmt: skip
    """Go on from the middle of a rollout: its first calls from the record, the rest live."""
    from agentloop.cli.session import Session
    from agentloop.workflows import forks

    archive = opt.open_archive(home)
    parent = archive.episode(id)
    if parent is None:
        raise UsageError(f"there is no rollout `{id}`; list them: agentloop inspect trajectories")
    forks.check(archive, parent, at)
    scope = workflow or _scope(archive, parent)
    session = Session.open(scope, home, workspace, model, None, parent.seed, settings, as_json)
    if dry_run:
        show.tell(f"would fork {parent.id} at model call {at}, {n} times, with the {bundle} bundle")
        return 0
    made = asyncio.run(session.forks(forks.Fork(parent, at, n), bundle))
    rows = [
        {"id": one.id, "parent": parent.id, "step": at, "state": _state(one),
         "answer": one.answer, "difference": forks.difference(parent, one)}
        for one in made
    ]  # fmt: skip
    if as_json:
        opt.print_json({"run": session.run_id, "episodes": rows})
        return 0
    for row in rows:
        verdict = f"first difference: {row['difference']}" if row["difference"] else "as its parent"
        show.tell(f"{row['id']}: {row['state']}; {verdict}")
    return 0


@runs.command(short_help="Grade stored rollouts again.")
def rescore(
    workflow: opt.Workflow,
    reward: Annotated[
        str | None, typer.Option("--reward", help="A grader's reference; else the workflow's own.")
    ] = None,
    home: opt.Home = None, workspace: opt.Space = None, as_json: opt.AsJson = False,
    dry_run: opt.DryRun = False, settings: opt.Settings = None,
) -> int:  # fmt: skip
    """Grade every stored rollout of a workflow again; no model is asked. Goes on when cut off."""
    from agentloop.workflows import rescore as rescoring
    from agentloop.workflows.load import load
    from agentloop.workspace import Workspace

    loaded = load(workflow, Workspace.find(workspace), opt.overrides(settings))  # type: ignore[arg-type]
    archive = opt.open_archive(home)
    grader = rescoring.grader_of(loaded, reward)
    if dry_run:
        left, gradable = rescoring.due(archive, loaded.name, grader)
        if as_json:
            opt.print_json({"read": left, "gradable": gradable, "done": False})
        else:
            show.tell(f"{left} rollouts to read, {gradable} of them to grade by {grader.name}")
        return 0
    started = time.monotonic()
    with show.LiveProgress(show.console(as_json=True)) as progress:
        done = asyncio.run(rescoring.rescore(archive, loaded.name, grader, progress=progress))
    rate = done.read / max(time.monotonic() - started, 1e-9)
    if as_json:
        opt.print_json({**asdict(done), "rows_per_second": round(rate, 1)})
    else:
        show.tell(
            f"{done.scored} of {done.read} rollouts graded as {done.spec}, {done.changed} changed "
            f"between solved and failed; {rate:.0f} a second",
            style="bold",
        )
    return 0


def _runs(archive: Archive) -> list[Entry]:
    from agentloop.store.query import Query

    return list(archive.read(Query(kinds=("run", "cycle"))))


def _find(archive: Archive, name: str) -> tuple[Entry | None, list[Episode]]:
    """The run or cycle that `name` begins and its rollouts, or the one rollout. Raises `UsageError`
    when there is none."""
    from agentloop.store.query import Query

    entries = {entry.key: entry for entry in _runs(archive)}
    chosen = [key for key in entries if key.startswith((name, f"run-{name}", f"cycle-{name}"))]
    if len(chosen) == 1:
        episodes = archive.episodes(Query(run=chosen[0]))
        if not episodes:
            raise UsageError(f"`{chosen[0]}` has no rollouts in this home; give another run")
        return entries[chosen[0]], episodes
    episode = archive.episode(name) if not chosen else None
    if episode is None:
        raise UnknownName("run, cycle or rollout", name, entries)
    return None, [episode]


def _row(archive: Archive, entry: Entry) -> dict[str, object]:
    from agentloop.store.query import Query

    made = Query(kinds=("episode",), run=entry.key)
    body = entry.body if isinstance(entry.body, dict) else {}
    end = "report" if entry.kind == "cycle" else "done"
    rollouts = len(archive.log.chosen(made))
    solved = len(archive.log.chosen(replace(made, success=True)))
    return {
        "id": entry.key, "workflow": entry.scope, "what": str(body.get("purpose", entry.kind)),
        "begun": entry.at, "rollouts": rollouts, "solved": solved, "failed": rollouts - solved,
        "state": "unfinished" if archive.step(entry.key, end) is None else "done",
    }  # fmt: skip


def _scope(archive: Archive, episode: Episode) -> str:
    entry = archive.log.get("episode", episode.id)
    assert entry is not None
    return entry.scope


def _state(episode: Episode) -> str:
    if episode.failure is not None:
        return episode.failure.reason
    if episode.score is None:
        return "not scored"
    return "solved" if episode.success else "failed"


def _when(at: float) -> str:
    return datetime.datetime.fromtimestamp(at).strftime("%m-%d %H:%M")
