"""Commands that run an agent: run, eval, cycle, check."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer

from agentloop.cli import options as opt
from agentloop.cli import show
from agentloop.cli.plan import print_cycle_plan, print_run_plan
from agentloop.errors import UsageError
from agentloop.trajectories.summary import summarise


def run(
    workflow: opt.Workflow, n: opt.Number = 8, seed: opt.Seed = 0, model: opt.ModelName = None,
    tasks: opt.TasksSpec = None, home: opt.Home = None, workspace: opt.Space = None,
    as_json: opt.AsJson = False, dry_run: opt.DryRun = False, settings: opt.Settings = None,
    resume: opt.Resume = False,
) -> int:  # fmt: skip
    """Run the champion bundle on N tasks and log every trajectory."""
    from agentloop.cli.session import Session

    session = Session.open(workflow, home, workspace, model, tasks, seed, settings, as_json)
    if dry_run:
        return print_run_plan(session, n)
    episodes, cost = asyncio.run(session.rollouts(n, purpose="serve", split="train", resume=resume))
    reasons = Counter(
        e.failure.reason if e.failure else "wrong_answer" for e in episodes if not e.success
    )
    counts = summarise(episodes)
    if as_json:
        opt.print_json({
            "run": session.run_id, "n": len(episodes),
            "succeeded": sum(e.success for e in episodes),
            "failed": reasons.total(), "by_reason": dict(reasons),
            "cost": show.cost_json(cost),
            **asdict(counts),
        })  # fmt: skip
        return 0
    out = show.console()
    shown = [
        next((e for e in episodes if e.success), None),
        next((e for e in episodes if not e.success), None),
    ]
    for episode in shown:
        if episode is not None:
            out.print(show.trace(episode))
    rate = sum(e.success for e in episodes) / max(len(episodes), 1)
    show.tell(
        f"{len(episodes)} rollouts, {show.percent(rate)} solved, {cost.tokens} tokens, "
        f"{show.dollars(cost)}, {session.seconds():.1f} s  (run {session.run_id})",
        style="bold",
    )
    show.tell(f"token drift: {counts.drift}", style="dim")
    example = next((e.id for e in episodes if e.score is not None), "")
    show.tell(
        f"next: agentloop inspect trajectories {example}{session.home_option()}"
        f"   |   agentloop cycle {workflow}{session.same_options()}",
        style="dim",
    )
    return 0


def evaluate(
    workflow: opt.Workflow,
    bundle: Annotated[str, typer.Option("--bundle", help="champion, or an id.")] = "champion",
    n: opt.Number = 64, seed: opt.Seed = 0, model: opt.ModelName = None,
    tasks: opt.TasksSpec = None, home: opt.Home = None, workspace: opt.Space = None,
    as_json: opt.AsJson = False, dry_run: opt.DryRun = False, settings: opt.Settings = None,
    resume: opt.Resume = False,
) -> int:  # fmt: skip
    """Measure a bundle on N held-out tasks, greedily."""
    from agentloop.cli.session import Session

    session = Session.open(workflow, home, workspace, model, tasks, seed, settings, as_json)
    if dry_run:
        return print_run_plan(session, n)
    episodes, cost = asyncio.run(
        session.rollouts(n, purpose="eval", split="heldout", bundle=bundle, resume=resume)
    )
    valid = [e for e in episodes if e.score is not None]
    successes = sum(e.success for e in valid)
    rate = successes / len(valid) if valid else 0.0
    counts = summarise(episodes)
    if as_json:
        opt.print_json(
            {
                "n": len(valid),
                "successes": successes,
                "rate": rate,
                "bundle": episodes[0].bundle if episodes else bundle,
                "seconds": session.seconds(),
                "cost": show.cost_json(cost),
                **asdict(counts),
            }
        )
        return 0 if valid else 1
    families = sorted({e.task.family for e in valid})
    out = show.console()
    out.print(show.table("held out", ["family", "n", "solved"], [
        (f, sum(e.task.family == f for e in valid),
         show.percent(_rate([e.success for e in valid if e.task.family == f])))
        for f in families
    ]))  # fmt: skip
    show.tell(
        f"{successes} of {len(valid)} solved ({show.percent(rate)}), "
        f"{len(episodes) - len(valid)} infrastructure failures, {cost.tokens} tokens, "
        f"{show.dollars(cost)}, {session.seconds():.0f} s",
        style="bold",
    )
    show.tell(f"token drift: {counts.drift}", style="dim")
    return 0 if valid else 1


def _rate(values: list[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def cycle(
    workflow: opt.Workflow, seed: opt.Seed = 0, model: opt.ModelName = None,
    resume: opt.Resume = False,
    again: Annotated[bool, typer.Option("--again", help="Start another cycle.")] = False,
    tasks: opt.TasksSpec = None, home: opt.Home = None, workspace: opt.Space = None,
    as_json: opt.AsJson = False, dry_run: opt.DryRun = False, settings: opt.Settings = None,
) -> int:  # fmt: skip
    """Collect, improve three lanes, judge, promote: one self-improvement cycle."""
    from agentloop.cli.session import Session

    if resume and again:
        raise UsageError("--resume and --again exclude each other; give one of them")
    session = Session.open(workflow, home, workspace, model, tasks, seed, settings, as_json)
    if dry_run:
        return print_cycle_plan(session)
    report = asyncio.run(session.cycle(resume=resume, again=again))
    if as_json:
        counts = asdict(session.summary())
        opt.print_json({**asdict(report), "cost": show.cost_json(report.cost), **counts})
    else:
        session.print_report(report)
    return 1 if report.state == "failed" else 0


def check(
    workflow: opt.Workflow,
    tier: Annotated[str | None, typer.Option("--tier", help="unit, toy, lm; else all.")] = None,
    stale: Annotated[bool, typer.Option("--stale", help="Only what is stale.")] = False,
    home: opt.Home = None, workspace: opt.Space = None, as_json: opt.AsJson = False,
    dry_run: opt.DryRun = False,
) -> int:  # fmt: skip
    """Measure a workflow's checks and write results.json and its README table. Resumable."""
    from agentloop import checks
    from agentloop.workspace import Workspace

    if tier not in (None, "unit", "toy", "lm"):
        raise UsageError(f"`--tier {tier}` is not one of unit, toy, lm")
    space = Workspace.find(workspace)
    if dry_run:
        due = checks.due(workflow, space, tier=tier, only_stale=stale)
        if as_json:
            opt.print_json([{"check": one.id, "seed": seed} for one, seed in due])
        else:
            show.tell(f"{len(due)} runs to make")
            show.console().print(show.table("", ["check", "seed"], [(c.id, s) for c, s in due]))
        return 0
    with show.LiveProgress(show.console(as_json=True)) as progress:
        results = checks.run_checks(
            workflow, space, home=home, tier=tier, only_stale=stale, progress=progress
        )
    if as_json:
        opt.print_json([one.as_json() for one in results])
    else:
        columns = ["check", "metric", "bar", "reached", "met"]
        show.console().print(show.table(f"checks of {workflow}", columns, [
            (r.id, r.metric, f"{r.op} {r.bar:g}", r.summary(), r.met()) for r in results
        ]))  # fmt: skip
    return 0 if all(r.ok for r in results if r.values or not stale) else 1
