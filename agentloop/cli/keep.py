"""Commands on what is kept: search, rollback, store verify, store reindex.

Goes in: a home. Comes out: lines for a person, or one JSON document.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from agentloop.cli import options as opt
from agentloop.cli import show
from agentloop.errors import StoreError, UsageError

store = typer.Typer(help="The log and its index.", no_args_is_help=True)


def search(
    text: Annotated[str, typer.Argument(help="What to look for, by meaning.")],
    kind: Annotated[str, typer.Option("--kind", help="episode, skill or instruction.")] = "episode",
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="How many.")] = 10,
    solved: Annotated[
        bool | None, typer.Option("--solved/--failed", help="Only solved, or only failed episodes.")
    ] = None,
    home: opt.Home = None, as_json: opt.AsJson = False,
) -> int:  # fmt: skip
    """Find trajectories, skills or instructions by meaning."""
    if kind not in ("episode", "skill", "instruction"):
        raise UsageError(f"`--kind {kind}` is not one of episode, skill, instruction")
    archive = opt.open_archive(home)
    hits = archive.search(kind, text, k, success=solved)
    rows = []
    for found_id, distance in hits:
        if kind == "episode":
            episode = archive.episode(found_id)
            label = episode.task.prompt if episode else ""
            state = ("solved" if episode.success else "failed") if episode else ""
        else:
            artifact = archive.get(found_id)
            label, state = str(getattr(artifact, "description", getattr(artifact, "text", ""))), ""
        rows.append({"id": found_id, "distance": round(distance, 4), "state": state, "text": label})
    if as_json:
        opt.print_json(rows)
    else:
        columns = ["id", "distance", "state", "text"]
        show.console().print(show.table(f"nearest to “{text}”", columns, [
            (show.short(str(r["id"])), r["distance"], r["state"], show.line(str(r["text"]), 100))
            for r in rows
        ]))  # fmt: skip
    return 0


def rollback(
    workflow: opt.Workflow, home: opt.Home = None, workspace: opt.Space = None,
    as_json: opt.AsJson = False, dry_run: opt.DryRun = False,
) -> int:  # fmt: skip
    """Serve the bundle that was champion before this one again."""
    from agentloop.workspace import Workspace

    name = Workspace.find(workspace).workflow(workflow).parent.name
    archive = opt.open_archive(home)
    alias = f"{name}/champion"
    now = archive.alias(alias)
    if now is None:
        raise UsageError(f"`{name}` has no champion in this home yet; run: agentloop cycle {name}")
    earlier = archive.before(alias) if dry_run else archive.rollback(alias)
    result = {"workflow": name, "from": now.bundle, "to": earlier, "done": not dry_run}
    if as_json:
        opt.print_json(result)
    else:
        verb = "would serve" if dry_run else "now serves"
        show.tell(f"{name} {verb} {earlier} instead of {now.bundle}", style="bold")
    return 0


@store.command()
def verify(home: opt.Home = None, as_json: opt.AsJson = False) -> int:
    """Walk the hash chain and check every record."""
    try:
        result = opt.open_archive(home).verify()
    except StoreError as error:  # too damaged to open is a finding as well
        result = {"ok": False, "rows": 0, "problems": [str(error)]}
    if as_json:
        opt.print_json(result)
    else:
        problems: Any = result["problems"]
        state = "sound" if result["ok"] else f"{len(problems)} problems"
        show.tell(f"{result['rows']} rows, {state}", style="green" if result["ok"] else "bold red")
        for problem in problems:
            show.tell(f"  {problem}")
    return 0 if result["ok"] else 1


@store.command()
def reindex(home: opt.Home = None, as_json: opt.AsJson = False, dry_run: opt.DryRun = False) -> int:
    """Rebuild the search index from the log."""
    archive = opt.open_archive(home)
    count = archive.verify()["rows"] if dry_run else archive.reindex()
    if as_json:
        opt.print_json({"rows": count, "done": not dry_run})
    else:
        show.tell(f"{count} log rows to read" if dry_run else f"{count} entries indexed")
    return 0
