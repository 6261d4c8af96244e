"""`agentloop gateway`: any agent that speaks OpenAI's chat format, under the champion bundle.

Goes in: a workflow. Comes out: a server on loopback until Ctrl-C, and a logged episode for each
session that agents held with it.
"""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING, Annotated

import typer

from agentloop.cli import options as opt
from agentloop.cli import show

if TYPE_CHECKING:
    from agentloop.cli.session import Session
    from agentloop.records import Episode

Port = Annotated[
    int, typer.Option("--port", min=0, max=65535, help="Of 127.0.0.1; 0 is any free one.")
]
Idle = Annotated[
    float, typer.Option("--idle", min=1, help="Seconds without a call that end a session.")
]


def gateway(
    workflow: opt.Workflow, port: Port = 0, idle: Idle = 60, seed: opt.Seed = 0,
    model: opt.ModelName = None, home: opt.Home = None, workspace: opt.Space = None,
    as_json: opt.AsJson = False, settings: opt.Settings = None,
) -> int:  # fmt: skip
    """Serve the champion to your own agents and log every session, until Ctrl-C."""
    from agentloop.cli.session import Session

    session = Session.open(workflow, home, workspace, model, None, seed, settings, as_json)
    return asyncio.run(_serve(session, port, idle))


async def _serve(session: Session, port: int, idle: float) -> int:
    from agentloop.records import content_id
    from agentloop.workflows.assemble import Options, assemble
    from agentloop.workflows.sessions import Sessions

    session.run_id = content_id("run", session.loaded.name, "gateway", time.time_ns())
    options = Options(
        run=session.run_id, seed=session.seed, model=session.model, tasks=session.tasks,
        workspace=session.workspace, home=session.home,
    )  # fmt: skip
    async with (
        assemble(session.loaded, session.archive, options) as kit,
        Sessions(kit.bench, port=port, idle=idle, tell=_tell) as sessions,
    ):
        stop = asyncio.Event()  # from here on: while a model server starts, Ctrl-C ends that
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        _print_address(session, sessions.endpoint("NAME").base_url, sessions.endpoint("NAME").token)
        await asyncio.wait(
            (asyncio.create_task(stop.wait()), sessions.broken),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if sessions.broken.done():
            sessions.broken.result()
    return 0


def _print_address(session: Session, base_url: str, token: str) -> None:
    if session.as_json:
        opt.print_json({"base_url": base_url, "api_key": token, "run": session.run_id})
        return
    show.tell(f"{session.loaded.name} for your agents; NAME is any name you like, one per task:")
    show.tell(f"  export OPENAI_BASE_URL={base_url}", style="bold")
    show.tell(f"  export OPENAI_API_KEY={token}", style="bold")
    show.tell(
        'end a session: curl -X DELETE -H "Authorization: Bearer $OPENAI_API_KEY" '
        "${OPENAI_BASE_URL%/v1} [-d '{\"score\": 1}']; all of them: Ctrl-C",
        style="dim",
    )


def _tell(name: str, episode: Episode) -> None:
    how = f"failed ({episode.failure.reason})" if episode.failure else "ended"
    show.tell(
        f"{name}: {how} after {episode.usage.calls} calls, {episode.usage.tokens} tokens; "
        f"logged as {episode.id}",
        err=True,
    )
