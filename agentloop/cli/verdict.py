"""How the report of a cycle looks in a terminal.

Goes in: a `Report` and its session. Comes out: lines on stdout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from agentloop.cli import show
from agentloop.records import Verdict
from agentloop.workflows.report import Report

if TYPE_CHECKING:
    from agentloop.cli.session import Session

_STATE = {"promoted": "bold green", "kept": "yellow", "failed": "bold red", "skipped": "dim"}


def print_report(session: Session, report: Report) -> None:
    """Headline, lanes, families, cost, where to look next."""
    out = show.console()
    held = report.heldout
    out.print()
    line = Text(f"{report.state} ", style=_STATE[report.state])
    line.append(f"held out {show.percent(held.champion)} → {show.percent(held.challenger)}")
    if held.effect is not None and held.ci95 is not None:
        low, high = held.ci95
        line.append(
            f"  ({show.points(held.effect)} points, 95 % CI {show.points(low)} to "
            f"{show.points(high)}, p = {held.p:.2g}, n = {held.n} of {held.planned})",
            style="dim",
        )
    out.print(line)
    if held.reason:
        show.tell(held.reason, style="dim")
    if held.note:
        show.tell(f"note: {held.note}", style="yellow")
    columns = ["lane", "state", "effect", "95 % CI", "p", "tokens", "seconds"]
    out.print()
    out.print(show.table("each lane alone", columns, [
        (name, lane.state, show.points(lane.effect), _interval(lane.ci95),
         None if lane.p is None else f"{lane.p:.1g}",
         None if lane.tokens_ratio is None else f"×{lane.tokens_ratio:.2f}", round(lane.seconds))
        for name, lane in report.lanes.items()
    ]))  # fmt: skip
    out.print(show.pairs((name, lane.reason) for name, lane in report.lanes.items()))
    families = family_table(session, report)
    if families is not None:
        out.print()
        out.print(families)
    out.print()
    cost = report.cost
    show.tell(
        f"{cost.tokens} tokens, {show.dollars(cost)}, {cost.seconds:.0f} s; "
        f"serving bundle {report.bundle}",
        style="bold",
    )
    show.tell(f"token drift: {session.summary().drift}", style="dim")
    home = session.home_option()
    show.tell(
        f"next: agentloop inspect bundles {report.bundle}{home}   |   "
        f"agentloop inspect decisions{home}   |   "
        f"agentloop rollback {session.loaded.name}{home}",
        style="dim",
    )


def _interval(ci95: tuple[float, float] | None) -> str:
    return "–" if ci95 is None else f"{show.points(ci95[0])} to {show.points(ci95[1])}"


def family_table(session: Session, report: Report) -> object | None:
    """Success per family: champion and all together on the tasks that decided, each lane alone on
    others."""
    verdicts: dict[str, Verdict] = {}
    for verdict in session.archive.verdicts(report.cycle):
        verdicts[verdict.subject] = verdict  # the last `joint` is the final comparison
    if "joint" not in verdicts:
        return None
    columns = [name for name in ("instructions", "skills", "policy", "joint") if name in verdicts]
    tasks = [task for name in columns for task, _, _ in verdicts[name].outcomes]
    family = families(session, tasks, report)
    rows = []
    for name in sorted(set(family.values())):
        row: list[object] = [name, _rate(verdicts["joint"], family, name, side=1)]
        row += [_rate(verdicts[column], family, name, side=2) for column in columns]
        rows.append(row)
    return show.table("solved per family", ["family", "before", *columns], rows)


def families(session: Session, tasks: list[str], report: Report) -> dict[str, str]:
    """Task id -> family, read from the cycle's held-out episodes."""
    from agentloop.store.query import Query

    episodes = session.archive.episodes(Query(run=report.cycle, purpose="eval"))
    known = {episode.task.id: episode.task.family for episode in episodes}
    return {task: known.get(task, "?") for task in tasks}


def _rate(verdict: Verdict, family: dict[str, str], name: str, *, side: int) -> str:
    hits = [bool(row[side]) for row in verdict.outcomes if family.get(row[0]) == name]
    return f"{sum(hits)}/{len(hits)}" if hits else "–"
