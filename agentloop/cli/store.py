"""Commands on the home itself: store verify, salvage, reindex, export, import, gc, backup, restore.

Goes in: a home. Comes out: lines for a person, or one JSON document.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentloop.cli import options as opt
from agentloop.cli import show
from agentloop.errors import StoreError, UsageError

if TYPE_CHECKING:
    from agentloop.store.backup import Copied

store = typer.Typer(help="The home: its log, index, policies and datasets.", no_args_is_help=True)
New = Annotated[Path, typer.Argument(help="A directory that is not there yet.", metavar="DIR")]
File = Annotated[Path, typer.Argument(help="*.jsonl, *.jsonl.zst or *.jsonl.gz.", metavar="FILE")]


@store.command()
def verify(home: opt.Home = None, as_json: opt.AsJson = False) -> int:
    """Walk the hash chain, check every record, policy and dataset."""
    from agentloop.store.backup import damaged

    place = _place(home)
    try:
        with opt.open_archive(home) as archive:
            result = archive.verify()
    except StoreError as error:  # too damaged to open is a finding as well
        result = {"ok": False, "rows": 0, "problems": [str(error)]}
    problems: Any = result["problems"]
    in_log = bool(problems) and not all(one.startswith("index:") for one in problems)
    problems += damaged(place)
    result["ok"] = not problems
    if as_json:
        opt.print_json(result)
        return 0 if result["ok"] else 1
    state = "sound" if result["ok"] else f"{len(problems)} problems"
    show.tell(f"{result['rows']} rows, {state}", style="green" if result["ok"] else "bold red")
    for problem in problems:
        show.tell(f"  {problem}")
    if in_log:
        show.tell(
            "next: agentloop store restore BACKUP --home NEW, or keep what is whole: "
            f"agentloop store salvage NEW --home {place}",
            style="dim",
        )
    return 0 if result["ok"] else 1


@store.command(short_help="Keep what is whole of a damaged home.")
def salvage(target: New, home: opt.Home = None, as_json: opt.AsJson = False) -> int:
    """Make a new home of what is whole of a damaged one: its log up to the first bad entry."""
    from agentloop.files import new_directory
    from agentloop.store.backup import LOG, copy_artifacts
    from agentloop.store.salvage import salvage as salvaging

    place = _place(home)
    _absent(target)
    with new_directory(target.resolve()) as draft:
        kept = salvaging(place / LOG, draft / LOG)
        count, problems = copy_artifacts(place, draft)
        draft.chmod(0o700)
    if as_json:
        opt.print_json({**asdict(kept), "artifacts": count, "problems": problems})
        return 0
    show.tell(f"{kept.rows} entries and {count} artifacts are whole, in {target}", style="bold")
    if kept.beyond:
        show.tell(f"{kept.beyond} later entries still stand in the file, and cannot be checked")
    for problem in problems:
        show.tell(f"  left out: {problem}")
    return 0


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


@store.command("export", short_help="Write rollouts to a file.")
def export_(
    file: File,
    workflow: Annotated[
        str | None, typer.Option("--workflow", help="Only this workflow's rollouts.")
    ] = None,
    run: Annotated[str | None, typer.Option("--run", help="Only this run's or cycle's.")] = None,
    home: opt.Home = None, as_json: opt.AsJson = False,
) -> int:  # fmt: skip
    """Write rollouts, scores, replies and versions to a file for another home."""
    from agentloop.store.exchange import export

    with opt.open_archive(home) as archive:
        done = export(archive.log, file, workflow=workflow, run=run)
    if as_json:
        opt.print_json(asdict(done))
    else:
        show.tell(f"{done.rows} entries written to {file}", style="bold")
    if done.left and not as_json:
        show.tell(f"{done.left} rollouts left out: their names do not say what they are of")
    return 0


@store.command("import")
def import_(
    file: File, home: opt.Home = None, as_json: opt.AsJson = False, dry_run: opt.DryRun = False
) -> int:
    """Add the rollouts of an exported file. Again is nothing; what is served stays."""
    from agentloop.store import exchange
    from agentloop.store.archive import Archive
    from agentloop.workspace import home as find_home

    if dry_run:
        rows = exchange.check(file).rows
        if as_json:
            opt.print_json({"rows": rows, "done": False})
        else:
            show.tell(f"{rows} entries, all sound")
        return 0
    exchange.check(file)  # before a home is made for it
    with Archive(find_home(home)) as archive:
        done = exchange.load(archive.log, file)
    if as_json:
        opt.print_json({**asdict(done), "done": True})
    else:
        show.tell(f"{done.new} new, {done.known} known, {done.left} left out", style="bold")
    return 0


@store.command(short_help="Remove what nothing refers to.")
def gc(
    keep: Annotated[
        int, typer.Option("--keep", min=0, help="Finished cycles of each workflow to keep whole.")
    ] = 3,
    home: opt.Home = None, as_json: opt.AsJson = False, dry_run: opt.DryRun = False,
) -> int:  # fmt: skip
    """Remove policies, datasets, training directories and logs that nothing refers to any more."""
    from agentloop.store import garbage

    place = _place(home)
    with opt.open_archive(home) as archive:
        found = garbage.removals(garbage.gather(archive, place, keep))
    size = sum(one.thing.bytes for one in found)
    if not dry_run:
        garbage.remove(place, found)
    if as_json:
        opt.print_json({
            "removed": [
                {"what": f"{one.thing.folder}/{one.thing.name}", "why": one.why} for one in found
            ],
            "bytes": size, "done": not dry_run,
        })  # fmt: skip
        return 0
    for one in found:
        show.tell(f"{one.thing.folder}/{one.thing.name}: {one.why}")
    verb = "would be freed" if dry_run else "freed"
    show.tell(f"{len(found)} removals, {size / 1e6:.1f} MB {verb}", style="bold")
    return 0


@store.command()
def backup(target: New, home: opt.Home = None, as_json: opt.AsJson = False) -> int:
    """Copy the home, also while it is in use, and verify the copy."""
    from agentloop.store import backup as copying

    opt.open_archive(home).close()
    return _copied(copying.backup(_place(home), target.resolve()), target, as_json)


@store.command()
def restore(
    source: Annotated[Path, typer.Argument(help="A backup.", metavar="DIR")],
    home: opt.Home = None, as_json: opt.AsJson = False,
) -> int:  # fmt: skip
    """Make a new home from a backup."""
    from agentloop.store import backup as copying
    from agentloop.workspace import home_path

    place = home_path(home)
    return _copied(copying.restore(source.resolve(), place), place, as_json)


def _copied(copied: Copied, target: Path, as_json: bool) -> int:
    if as_json:
        opt.print_json({**asdict(copied), "path": str(target)})
    else:
        show.tell(
            f"{copied.rows} entries and {copied.artifacts} artifacts copied to {target}, verified",
            style="bold",
        )
        for problem in copied.problems:
            show.tell(f"  left out: {problem}", style="bold red")
    return 1 if copied.problems else 0


def _place(home: Path | None) -> Path:
    from agentloop.workspace import home as find_home

    return find_home(home, create=False)


def _absent(target: Path) -> None:
    if target.exists():
        raise UsageError(f"`{target}` exists; give a directory that is not there yet")
