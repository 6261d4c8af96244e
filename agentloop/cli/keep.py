"""Commands on what was learned: search, rollback.

Goes in: a home. Comes out: lines for a person, or one JSON document.
"""

from __future__ import annotations

from typing import Annotated

import typer

from agentloop.cli import options as opt
from agentloop.cli import show
from agentloop.errors import UsageError


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
