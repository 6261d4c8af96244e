"""Changing commands on content: `instructions edit`, `policies export`.

Goes in: a version in the log, or a person's text. Comes out: a folder, or a version that serves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentloop.cli import options as opt
from agentloop.cli import show
from agentloop.errors import UsageError

instructions = typer.Typer(help="The instruction population.", no_args_is_help=True)
policies = typer.Typer(help="The local model's trained versions.", no_args_is_help=True)


@instructions.command("edit")
def edit_instruction(
    workflow: opt.Workflow,
    file: Annotated[Path, typer.Argument(help="The new text.")],
    home: opt.Home = None, workspace: opt.Space = None, dry_run: opt.DryRun = False,
) -> int:  # fmt: skip
    """Make a text of yours the champion's instruction."""
    from dataclasses import replace

    from agentloop.records import Bundle, Instruction
    from agentloop.workspace import Workspace

    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`{file}` cannot be read as UTF-8 text: {error}") from error
    name = Workspace.find(workspace).workflow(workflow).parent.name
    archive = opt.open_archive(home)
    current = archive.alias(f"{name}/champion")
    if current is None:
        raise UsageError(f"`{name}` has no champion in this home yet; run: agentloop run {name}")
    bundle = archive.get(current.bundle, Bundle)
    if dry_run:
        show.tell(f"would replace instruction {bundle.instruction} of {name}")
        return 0
    edited = archive.put(Instruction(text=text, operator="edit", parents=(bundle.instruction,)))
    changed = archive.put(replace(bundle, instruction=edited))
    archive.point(f"{name}/champion", changed, reason="edited by a person", scope=name)
    show.tell(f"{name} now says {edited}; undo with: agentloop rollback {workflow}", style="bold")
    return 0


@policies.command("export")
def export_policy(
    id: Annotated[str, typer.Argument(help="A policy's id.")],
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    home: opt.Home = None, dry_run: opt.DryRun = False,
) -> int:  # fmt: skip
    """Write a policy merged into its base, as safetensors."""
    import asyncio

    from agentloop.policies.export import export
    from agentloop.policies.registry import Policies
    from agentloop.workspace import home as find_home

    found = Policies(find_home(home, create=False) / "policies")
    policy = found.load(id)
    if dry_run:
        show.tell(f"would write {id} with its base {policy.base} to {folder}")
        return 0
    show.tell(f"wrote {asyncio.run(export(found, id, folder))}")
    return 0
