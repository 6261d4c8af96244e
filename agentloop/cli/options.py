"""Options that many commands share, and how a command starts from them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentloop.errors import UsageError

if TYPE_CHECKING:
    from agentloop.store.archive import Archive

Workflow = Annotated[str, typer.Argument(help="Name, folder or workflow.yaml.", metavar="WORKFLOW")]
Home = Annotated[
    Path | None, typer.Option("--home", help="State directory.", envvar="AGENTLOOP_HOME")
]
Space = Annotated[
    Path | None, typer.Option("--workspace", help="Folder with workflows/ and graphs/.")
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="embedded[:DIR] | vllm[:DIR] | scripted | endpoint | openai:NAME | "
        "litellm:PROVIDER/NAME | http://HOST/v1#NAME",
    ),
]
TasksSpec = Annotated[
    str | None,
    typer.Option("--tasks", help="A JSONL file, or reasoning_gym:FAMILY[,FAMILY...]."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same tasks and samples.")]
Number = Annotated[int, typer.Option("--n", "-n", min=1, help="How many tasks.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan, the counts and the price; do nothing.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the one that was cut off.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a workflow key, e.g. heldout.n=32 (repeatable)."),
]


def overrides(settings: list[str] | None) -> dict[str, object]:
    """`key=value` pairs, values read as JSON where they are JSON."""
    found: dict[str, object] = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"`--set {setting}` is not key=value, e.g. --set heldout.n=32")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


def open_archive(home: Path | None) -> Archive:
    """The archive of a home that is in use. Raises `UsageError` when there is none: a command that
    reads does not make one."""
    from agentloop.store.archive import Archive
    from agentloop.workspace import home as find_home

    place = find_home(home, create=False)
    if not (place / "log.db").is_file():
        raise UsageError(
            f"nothing was logged in `{place}` yet; run: agentloop run WORKFLOW, or give another "
            "with --home DIR"
        )
    return Archive(place)


def print_json(value: object) -> None:
    """One JSON document on stdout, in ASCII: whatever a model wrote, a terminal is safe from it."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
