"""`agentloop serve` and `agentloop canary`: the champion for any client, and who follows it.

Goes in: a workflow. Comes out: a server on loopback until Ctrl-C or SIGTERM, and a logged episode
for each conversation that agreed to it.
"""

from __future__ import annotations

import asyncio
import datetime
import signal
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentloop.cli import options as opt
from agentloop.cli import show
from agentloop.errors import UsageError

if TYPE_CHECKING:
    from agentloop.cli.session import Session
    from agentloop.gateway.front import Front
    from agentloop.records import Episode

Host = Annotated[str, typer.Option("--host", help="A loopback address.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="0 is any free one.")]
Idle = Annotated[
    float, typer.Option("--idle", min=0.1, help="Seconds of silence that end a conversation.")
]


def serve(
    workflow: opt.Workflow, host: Host = "127.0.0.1", port: Port = 0, idle: Idle = 300,
    seed: opt.Seed = 0, model: opt.ModelName = None, home: opt.Home = None,
    workspace: opt.Space = None, as_json: opt.AsJson = False, settings: opt.Settings = None,
) -> int:  # fmt: skip
    """Serve the champion in OpenAI's format, to clients and to your own agents, until Ctrl-C."""
    from agentloop.cli.session import Session
    from agentloop.gateway.http import loopback

    loopback(host)
    session = Session.open(workflow, home, workspace, model, None, seed, settings, as_json)
    asyncio.run(_serve(session, host, port, idle))
    return 0


async def _serve(session: Session, host: str, port: int, idle: float) -> None:
    from agentloop.gateway.front import Front
    from agentloop.live.serving import Service
    from agentloop.records import content_id
    from agentloop.workflows.assemble import Options, assemble

    loaded = session.loaded
    session.run_id = content_id("run", loaded.name, "serve", time.time_ns())
    options = Options(
        run=session.run_id, seed=session.seed, model=session.model, tasks=session.tasks,
        workspace=session.workspace, home=session.home, live=True,
    )  # fmt: skip
    part = loaded.spec.serve.reward
    async with (
        assemble(loaded, session.archive, options) as kit,
        Service(
            kit.bench, loaded.spec.serve, idle=idle, say=_say, tell=_tell,
            reward=None if part is None else loaded.build(part),
        ) as service,
        Front(service, host=host, port=port) as front,
    ):  # fmt: skip
        stop = asyncio.Event()  # from here on: while a model server starts, Ctrl-C ends that
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        _print_address(session, front)
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((stopped, service.broken), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
    show.tell("stopped; what may be logged is", style="dim", err=True)


def _print_address(session: Session, front: Front) -> None:
    base_url, token = front.base_url(), front.token
    if session.as_json:
        opt.print_json({
            "base_url": base_url, "api_key": token, "run": session.run_id,
            "sessions": front.base_url("NAME"),
        })  # fmt: skip
        return
    consent = {
        "always": "every conversation is logged unless it refuses",
        "ask": "a conversation is logged when it says `store: true`",
        "never": "no conversation is logged",
    }[session.loaded.spec.serve.consent]
    show.tell(f"{session.loaded.name} serves at {base_url}; {consent}", style="bold", err=True)
    show.tell(f"token={token}", err=True)
    show.tell(f"your own agents, a session each: {front.base_url('NAME')}", style="dim", err=True)


def _say(text: str) -> None:
    show.tell(text, err=True)


def _tell(name: str, episode: Episode, logged: bool) -> None:
    how = f"failed ({episode.failure.reason})" if episode.failure else "ended"
    who = (
        name if logged else "a session"
    )  # no word of one that did not agree: a name is the client's
    where = f"logged as {episode.id}" if logged else "not logged: it did not agree"
    show.tell(
        f"{who}: {how} after {episode.usage.calls} calls, {episode.usage.tokens} tokens; {where}",
        err=True,
    )


def canary(
    workflow: opt.Workflow,
    bundle: Annotated[str | None, typer.Argument(help="Begin one: a bundle's id.")] = None,
    end: Annotated[bool, typer.Option("--end", help="End the one that runs.")] = False,
    home: opt.Home = None, workspace: opt.Space = None, as_json: opt.AsJson = False,
    dry_run: opt.DryRun = False, settings: opt.Settings = None,
) -> int:  # fmt: skip
    """Give a bundle a share of conversations, end that, or see how it stands."""
    from agentloop.live import canary as canaries
    from agentloop.records import Bundle
    from agentloop.workflows.assemble import canary_of
    from agentloop.workflows.load import load
    from agentloop.workspace import Workspace

    if bundle is not None and end:
        raise UsageError("give a bundle to begin a canary, or --end to end one, not both")
    loaded = load(workflow, Workspace.find(workspace), opt.overrides(settings))  # type: ignore[arg-type]
    archive, name = opt.open_archive(home), loaded.name
    if bundle is not None:
        found = archive.id(bundle, Bundle)
        if not dry_run:
            canaries.begin(archive, name, found, reason="begun by hand")
        return _done(as_json, name, "would be" if dry_run else "is", found)
    now = canaries.running(archive, name)
    if end:
        if now is None:
            raise UsageError(f"`{name}` has no canary; begin one: agentloop canary {name} BUNDLE")
        if not dry_run:
            archive.retire(canary_of(name), reason="ended by hand")
        return _done(as_json, name, "would no longer be" if dry_run else "is no longer", now.bundle)
    past = canaries.decisions(archive, name)
    standing = canaries.standing(archive, name, now, loaded.spec.serve) if now else None
    if as_json:
        shown = {**asdict(now), **asdict(standing)} if now and standing else None
        opt.print_json({"workflow": name, "canary": shown, "decisions": past})
        return 0
    if now and standing:
        show.tell(f"{now.bundle} is the canary of {name}, {now.champion} its champion")
        show.tell(f"{standing.action}: {standing.reason}", style="bold")
    else:
        show.tell(f"`{name}` has no canary; begin one: agentloop canary {name} BUNDLE", style="dim")
    if past:
        show.console().print(show.table("decisions", ["when", "canary", "decided", "why"], [
            (_when(one["at"]), show.short(one["canary"]), one["action"], one["reason"])
            for one in past
        ]))  # fmt: skip
    return 0


def _done(as_json: bool, workflow: str, verb: str, bundle: str) -> int:
    if as_json:
        opt.print_json({"workflow": workflow, "bundle": bundle, "done": "would" not in verb})
    else:
        show.tell(f"{bundle} {verb} the canary of {workflow}", style="bold")
    return 0


def _when(at: Any) -> str:
    return datetime.datetime.fromtimestamp(at).strftime("%m-%d %H:%M")
