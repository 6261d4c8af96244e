"""Commands on sandboxes: list, check.

Goes in: names of profiles. Comes out: a table for a person, or one JSON document. `check` attacks a
sandbox on this machine and exits with 1 when something got through or it cannot be used.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from agentloop.cli import options as opt
from agentloop.cli import show
from agentloop.errors import AgentLoopError, UnknownName, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from agentloop.sandboxes.profile import Profile

_SECONDS = 2.0
sandboxes = typer.Typer(help="Where code that a model wrote runs.", no_args_is_help=True)


@sandboxes.command("list")
def list_(workspace: opt.Space = None, as_json: opt.AsJson = False) -> int:
    """Profiles, their limits, and what this machine can use."""
    from agentloop.sandboxes.profile import profiles
    from agentloop.workspace import Workspace

    rows = [(name, *_opened(path)) for name, path in profiles(Workspace.find(workspace)).items()]
    if as_json:
        opt.print_json([
            {"name": name, "usable": not missing, "missing": missing or None,
             "profile": profile.model_dump(mode="json") if profile else None}
            for name, profile, missing in rows
        ])  # fmt: skip
        return 0
    columns = ["name", "backend", "seconds", "memory", "processes", "disk", "network", "here"]
    show.console().print(show.table("sandboxes", columns, [
        (name, profile.backend, f"{profile.seconds:g}", f"{profile.memory_mb} MB",
         "none" if profile.backend == "monty" else str(profile.pids),
         "none" if profile.backend == "monty" else f"{profile.disk_mb} MB", profile.network,
         missing or ("has no walls" if profile.unsafe else "can be used"))
        if profile else (name, "?", "", "", "", "", "", missing)
        for name, profile, missing in rows
    ]))  # fmt: skip
    return 0


@sandboxes.command("check")
def check(
    name: Annotated[str | None, typer.Argument(help="A profile; all that have walls.")] = None,
    workspace: opt.Space = None, as_json: opt.AsJson = False,
) -> int:  # fmt: skip
    """Attack sandboxes: do they keep what they promise, here and now?"""
    from agentloop.sandboxes.profile import profiles
    from agentloop.workspace import Workspace

    known = profiles(Workspace.find(workspace))
    if name is not None and name not in known:
        raise UnknownName("sandbox", name, known)
    found: dict[str, tuple[int, list[str]]] = {}
    for one, path in known.items():
        if name in (None, one):
            profile, missing = _opened(path)
            if profile is not None and profile.unsafe:
                if name:
                    raise UsageError(f"`{one}` has no walls and promises nothing; check another")
                continue
            found[one] = (0, [missing]) if profile is None or missing else _checked(profile)
    broken = any(problems for _, problems in found.values())
    if as_json:
        opt.print_json({
            one: {"holds": not problems, "attempts": tried, "problems": problems}
            for one, (tried, problems) in found.items()
        })  # fmt: skip
        return int(broken)
    for one, (tried, problems) in found.items():
        kept = f"holds against {tried} escape attempts" if tried else "keeps its promises"
        verdict = "does not hold" if problems else kept
        show.tell(f"{one} {verdict}", style="bold red" if problems else "bold green")
        for problem in problems:
            show.tell(f"  {show.clean(problem)}")
    return int(broken)


def _opened(path: Path) -> tuple[Profile | None, str]:
    """A profile and why it cannot be used here."""
    from agentloop.sandboxes.profile import bare, read_profile

    try:
        profile = read_profile(path)
    except AgentLoopError as error:
        return None, str(error)
    try:
        if not profile.unsafe:
            bare(profile)
    except AgentLoopError as error:
        return profile, str(error)
    return profile, ""


def _checked(profile: Profile) -> tuple[int, list[str]]:
    """How many attempts were made, and what is wrong."""
    from agentloop.sandboxes.preflight import escapes
    from agentloop.sandboxes.profile import bare
    from agentloop.sandboxes.self_check import self_check

    # It is asked what happens at the end of its time; that need not be long.
    quick = profile.model_copy(update={"seconds": min(profile.seconds, _SECONDS)})

    async def main() -> tuple[int, list[str]]:
        sandbox = bare(quick)
        try:
            problems = await self_check(sandbox)
            if not hasattr(sandbox, "claims"):
                return 0, problems
            tried, through = await escapes(sandbox)
            return tried, problems + through
        finally:
            await sandbox.close()

    try:
        return asyncio.run(main())
    except AgentLoopError as error:
        return 0, [str(error)]
