"""`agentloop schedule`: run cycles by the clock or by triggers, look at them, install that.

Goes in: a workflow and when. Comes out: cycles until a signal ends it, one line each on stderr;
with `--dry-run` the next slots, the plan of a cycle and what is left of the month.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from agentloop.cli import options as opt
from agentloop.cli import show
from agentloop.errors import BudgetReached, UsageError

if TYPE_CHECKING:
    from agentloop.cli.session import Session
    from agentloop.records import Json
    from agentloop.schedule import Calendar, Outcome, Slot
    from agentloop.store.archive import Archive
    from agentloop.store.query import Fence
    from agentloop.workflows.report import Report


class _Group(TyperGroup):
    """`schedule WORKFLOW` is `schedule run WORKFLOW`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the command where none is named."""
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


schedule = typer.Typer(
    cls=_Group, no_args_is_help=True, rich_markup_mode=None,
    help="Run cycles by the clock or by triggers: `schedule WORKFLOW`, status, install.",
)  # fmt: skip

Cron = Annotated[
    str | None, typer.Option("--cron", help='Five fields, e.g. "0 3 * * *" for every day at 3:00.')
]
Timezone = Annotated[str | None, typer.Option("--timezone", help="Of --cron, e.g. Europe/Berlin.")]
Every = Annotated[str | None, typer.Option("--every", help="Interval: 30m, 6h, 1d.")]
MissedRule = Annotated[
    str | None,
    typer.Option("--missed", help="Slots that passed while nothing ran: skip, once or all."),
]


@schedule.command("run", short_help="Run cycles, from now on (the default).")
def run(
    workflow: opt.Workflow, cron: Cron = None, timezone: Timezone = None, every: Every = None,
    missed: MissedRule = None,
    cycles: Annotated[
        int | None, typer.Option("--cycles", min=1, help="End after so many.")
    ] = None,
    due: Annotated[
        bool, typer.Option("--due", help="Run what is due and end; for a crontab.")
    ] = False,
    seed: opt.Seed = 0, model: opt.ModelName = None, tasks: opt.TasksSpec = None,
    home: opt.Home = None, workspace: opt.Space = None, as_json: opt.AsJson = False,
    dry_run: opt.DryRun = False, settings: opt.Settings = None,
) -> int:  # fmt: skip
    """Run cycles by the clock or by triggers, as the workflow's `schedule` or these options say. An
    unfinished cycle goes on first; a second scheduler stands by."""
    from agentloop.cli.session import Session

    def open_session(with_seed: int) -> Session:
        return Session.open(
            workflow, home, workspace, model, tasks, with_seed, settings, as_json=False
        )

    session = open_session(seed)
    session.as_json = as_json
    calendar = _calendar(session, cron=cron, timezone=timezone, every=every, missed=missed)
    if dry_run:
        return _print_plan(session, calendar)
    return _work(session, calendar, open_session, cycles=cycles, due=due)


@schedule.command("status", short_help="The last slots, the next ones, the month.")
def status(
    workflow: opt.Workflow, n: Annotated[int, typer.Option("--n", "-n", min=1)] = 10,
    model: opt.ModelName = None, home: opt.Home = None, workspace: opt.Space = None,
    as_json: opt.AsJson = False, settings: opt.Settings = None,
) -> int:  # fmt: skip
    """The last N slots with their cycles and how these ended, the next ones, and the month."""
    from agentloop.cli.session import Session
    from agentloop.schedule.slots import history

    session = Session.open(workflow, home, workspace, model, None, 0, settings, as_json)
    with opt.open_archive(home) as archive:
        slots = history(archive.log, session.loaded.name, n)
        told = {"slots": slots, **_outlook(session, _calendar(session), archive)}
    if as_json:
        opt.print_json(told)
        return 0
    columns = ["slot", "state", "cycle", "bundle", "reason"]
    rows = [
        (one["slot"], one["state"], show.short(_text(one, "cycle") or None),
         show.short(_text(one, "bundle") or None), _text(one, "reason") or _text(one, "cause"))
        for one in slots
    ]  # fmt: skip
    show.console().print(show.table(f"slots of {session.loaded.name}", columns, rows))
    _tell_outlook(told)
    return 0


@schedule.command("install", short_help="Write a systemd unit or a crontab line.")
def install(
    workflow: opt.Workflow,
    use_systemd: Annotated[bool, typer.Option("--systemd", help="A user unit.")] = False,
    use_cron: Annotated[bool, typer.Option("--cron", help="A line for a crontab.")] = False,
    model: opt.ModelName = None, tasks: opt.TasksSpec = None, home: opt.Home = None,
    workspace: opt.Space = None, as_json: opt.AsJson = False, dry_run: opt.DryRun = False,
    settings: opt.Settings = None,
) -> int:  # fmt: skip
    """Write what starts this workflow's scheduler with the machine, and print the command that
    enables it. That command is yours to run."""
    from agentloop.cli.session import Session
    from agentloop.schedule.install import cron as cron_line
    from agentloop.schedule.install import systemd
    from agentloop.workspace import home_path

    if use_systemd == use_cron:
        raise UsageError("give one of --systemd and --cron")
    session = Session.open(workflow, home, workspace, model, tasks, 0, settings, as_json)
    _calendar(session)  # what would not run is not installed
    place, directory = home_path(home), Path.cwd()
    command = [
        sys.executable, "-m", "agentloop", "schedule", "run", str(session.loaded.path),
        "--home", str(place), "--workspace", str(session.workspace.roots[0]),
    ]  # fmt: skip
    tasks = str(Path(tasks).resolve()) if tasks and Path(tasks).is_file() else tasks
    for option, value in (("--model", model), ("--tasks", tasks)):
        command += [option, value] if value else []
    for setting in settings or []:
        command += ["--set", setting]
    write = systemd if use_systemd else cron_line
    made = write(session.loaded.name, command, directory=directory, home=place)
    if not dry_run:
        made = write(session.loaded.name, command, directory=directory, home=session.home)
        made.write()
    if as_json:
        opt.print_json({"path": str(made.path), "text": made.text, "enable": made.enable})
        return 0
    show.tell(f"{made.path}{' would hold' if dry_run else ' was written'}:", style="bold")
    sys.stdout.write(made.text)
    show.tell("to enable it, run:", style="bold")
    show.tell(f"  {made.enable}")
    return 0


@dataclass
class SessionCycles:
    """`schedule.run.Cycles`: each slot opens the workflow anew, as it is then."""

    open_session: Callable[[int], Session]
    archive: Archive
    workflow: str

    def refusal(self) -> str:
        """A budget of the month that is used."""
        from agentloop.workflows.month import Ledger

        try:
            budget = self.open_session(0).loaded.spec.budget
        except UsageError:  # such a workflow has no budget; its slot fails by it, with the cause
            return ""
        try:
            Ledger(self.archive, self.workflow).within(budget)
        except BudgetReached as error:
            return str(error)
        return ""

    def open(self, seed: int) -> str:
        """A cycle that was never begun."""
        from agentloop.cycle import open_cycle

        return open_cycle(
            self.archive, self.workflow, seed, plan="", resume=False, again=True
        )[0]  # fmt: skip

    async def run(self, slot: Slot, fence: Fence) -> Outcome:
        """Run or finish it."""
        session = self.open_session(slot.seed)
        session.archive = self.archive  # one for all: files and threads do not add up
        return outcome_of(await session.cycle_of(slot.cycle, fence))


def outcome_of(report: Report) -> Outcome:
    """A report in short: the reason names what failed."""
    from agentloop.schedule import Outcome

    failed = [
        f"{name}: {one.reason}" for name, one in report.lanes.items() if one.state == "failed"
    ]
    return Outcome(state=report.state, bundle=report.bundle, reason="; ".join(failed))


def _work(
    session: Session, calendar: Calendar, open_session: Callable[[int], Session], *,
    cycles: int | None, due: bool,
) -> int:  # fmt: skip
    from agentloop.cli.stop import Stopped, until_stopped
    from agentloop.schedule import Scheduler, Triggers
    from agentloop.schedule.slots import history
    from agentloop.store.leases import LeaseHeld

    name, when = session.loaded.name, session.loaded.spec.schedule.when
    with session.archive as archive:
        scheduler = Scheduler(
            log=archive.log, workflow=name, calendar=calendar,
            cycles=SessionCycles(open_session, archive, name), triggers=Triggers(**dict(when)),
            seed=session.seed, tell=_tell,
        )  # fmt: skip
        done = 0
        try:
            done = until_stopped(scheduler.run(cycles, stay=not due))
        except LeaseHeld as error:  # only with --due
            _tell(f"nothing to do: {error}")
        except Stopped as error:
            if error.number == signal.SIGINT:
                raise KeyboardInterrupt from None
            _tell("stopped; an unfinished cycle goes on when the scheduler is started again")
        if session.as_json:
            opt.print_json({"cycles": done, "slots": history(archive.log, name, done, begun=True)})
    return 0


def _tell(text: str) -> None:
    show.tell(f"{time.strftime('%H:%M:%S')} {text}", err=True)


def _calendar(
    session: Session, *, cron: str | None = None, timezone: str | None = None,
    every: str | None = None, missed: str | None = None,
) -> Calendar:  # fmt: skip
    """The workflow's, changed by options: one clock that is given replaces the other."""
    from agentloop.schedule import Triggers, calendar_of

    said = session.loaded.spec.schedule
    rules: dict[str, Literal["skip", "once", "all"]] = {
        "skip": "skip", "once": "once", "all": "all",
    }  # fmt: skip
    if missed is not None and missed not in rules:
        raise UsageError(f"`--missed {missed}` is not one of skip, once, all")
    given = cron is not None or every is not None
    return calendar_of(
        cron=(cron or "") if given else said.cron,
        every=(every or "") if given else said.every,
        timezone=timezone or said.timezone,
        missed=rules[missed] if missed else said.missed,
        needed=not Triggers(**dict(said.when)),
    )


def _outlook(session: Session, calendar: Calendar, archive: Archive | None) -> dict[str, Json]:
    """The next slots, and the month: what its budget is and what is left of it."""
    from agentloop.schedule.slots import slot_name, started_at
    from agentloop.workflows.month import Ledger

    now, name = time.time(), session.loaded.name
    began = started_at(archive.log, name, calendar.rule) if archive else None
    if began is None:  # an interval begins at once
        coming = calendar.anchored(now).next(now - 0.001, 5)
    else:
        coming = calendar.anchored(began).next(now, 5)
    month = session.loaded.spec.budget.month
    left = Ledger(archive, name).left(month) if archive else month
    return {
        "rule": calendar.rule,
        "when": session.loaded.spec.schedule.when.model_dump(exclude_none=True),
        "missed": calendar.missed,
        "next": [slot_name(moment) for moment in coming],
        "month": asdict(month),
        "month_left": asdict(left),
    }


def _print_plan(session: Session, calendar: Calendar) -> int:
    """The next slots, the plan of one cycle, and the month; nothing is written."""
    from agentloop.cli.plan import plan_of_cycle, print_cycle_plan

    try:
        archive = opt.open_archive(session.given_home)
    except UsageError:  # nothing was logged there yet
        archive = None
    try:
        told = _outlook(session, calendar, archive)
    finally:
        if archive is not None:
            archive.close()
    if session.as_json:
        opt.print_json({**told, "cycle": plan_of_cycle(session)})
        return 0
    _tell_outlook(told)
    return print_cycle_plan(session)


def _tell_outlook(told: dict[str, Any]) -> None:
    rule = told["rule"] or "no clock"
    show.tell(f"{rule}; missed slots: {told['missed']}", style="bold")
    for cause, value in told["when"].items():
        show.tell(f"and when: {cause} {value}")
    for place, name in enumerate(told["next"]):
        show.tell(f"  {'next' if place == 0 else 'then'} {name}")
    for name, limit in told["month"].items():
        if limit is not None:
            left = told["month_left"][name]
            show.tell(f"of the month's {limit:g} {name}, {left:g} are left")


def _text(one: dict[str, Any], key: str) -> str:
    return str(one.get(key) or "")
