"""Measure a workflow's checks: one run per (measure, ablation, seed), resumable, results written
after each."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from agentloop.checks.render import render_readme
from agentloop.checks.results import CheckResult, Results, digest, run_key
from agentloop.cycle import cycle, open_cycle
from agentloop.errors import UsageError
from agentloop.ports import Progress, silent
from agentloop.refs import resolve
from agentloop.store.archive import Archive
from agentloop.workflows.assemble import Options, assemble, plan_hash
from agentloop.workflows.load import Loaded, load
from agentloop.workflows.report import Report
from agentloop.workflows.schema import Check
from agentloop.workspace import Workspace
from agentloop.workspace import home as find_home


@dataclass(frozen=True)
class CheckRun:
    """What a measure is lent: the workflow (ablation applied), a seed, a home of its own."""

    loaded: Loaded
    workspace: Workspace
    home: Path
    seed: int
    progress: Progress

    def options(self, run: str) -> Options:
        """Options of a kit for this run."""
        return Options(
            run=run,
            seed=self.seed,
            workspace=self.workspace,
            home=self.home,
            progress=self.progress,
            plan=plan_hash(self.loaded, None, None, self.seed),
        )

    async def report(self) -> Report:
        """The report of this run's cycle; a finished one is not repeated."""
        archive = Archive(self.home)
        plan = plan_hash(self.loaded, None, None, self.seed)
        cycle_id, finished = open_cycle(
            archive, self.loaded.name, self.seed, plan=plan, resume=True, again=False
        )
        if finished is not None:
            return finished
        async with assemble(self.loaded, archive, self.options(cycle_id)) as kit:
            return await cycle(kit)


Measure = Callable[[CheckRun], Awaitable[dict[str, float]]]


async def measure_cycle(run: CheckRun) -> dict[str, float]:
    """The default measure: the numbers of one cycle's report, dotted."""
    report = await run.report()
    held = report.heldout
    metrics: dict[str, float | None] = {
        "heldout.n": held.n, "heldout.champion": held.champion, "heldout.challenger": held.challenger,
        "heldout.effect": held.effect, "heldout.p": held.p, "seconds": report.cost.seconds,
        "tokens": report.cost.tokens, "promoted": float(report.state == "promoted"),
    }  # fmt: skip
    for name, lane in report.lanes.items():
        metrics[f"lanes.{name}.effect"] = lane.effect
        metrics[f"lanes.{name}.p"] = lane.p
        metrics[f"lanes.{name}.tokens_ratio"] = lane.tokens_ratio
    return {name: float(value) for name, value in metrics.items() if value is not None}


def run_checks(
    workflow: str, space: Workspace, *, home: Path | None = None, tier: str | None = None,
    only_stale: bool = False, progress: Progress = silent,
) -> list[CheckResult]:  # fmt: skip
    """Measure what is missing or stale, write results and tables, return every check's result."""
    loaded = load(workflow, space)
    checks = [c for c in loaded.spec.checks if tier is None or c.tier == tier]
    if not checks:
        kind = f"{tier} checks" if tier else "checks"
        raise UsageError(f"`{workflow}` has no {kind}; add `checks` to {loaded.path}")
    results, current = Results.read(loaded.folder), digest(loaded)
    for check in checks:
        for seed in check.seeds:
            known = results.runs.get(run_key(check, seed))
            if known is not None and known["hash"] == current:
                continue
            if only_stale and known is None:
                continue
            results.runs[run_key(check, seed)] = _measure(
                check, seed, space, home, progress, loaded
            )
            results.write()
    render_readme(loaded, results)
    return [results.result(check, current) for check in checks]


def _measure(
    check: Check, seed: int, space: Workspace, home: Path | None, progress: Progress, loaded: Loaded
) -> dict[str, Any]:
    changed = loaded.spec.ablations.get(check.ablation, {}) if check.ablation else {}
    variant = load(str(loaded.path), space, changed)
    current = digest(loaded)
    place = (
        find_home(home) / "checks" / f"{loaded.name}-{check.ablation or 'full'}-{seed}-{current}"
    )
    place.mkdir(parents=True, exist_ok=True)
    measure = cast(Measure, resolve(check.use, loaded.folder)) if check.use else measure_cycle
    began = time.monotonic()
    run = CheckRun(variant, space, place, seed, progress)
    metrics = asyncio.run(_call(measure, run))
    return {
        "metrics": {k: round(v, 6) for k, v in metrics.items()},
        "hash": current,
        "seconds": round(time.monotonic() - began, 1),
        "commit": _commit(loaded.folder),
        "at": time.strftime("%Y-%m-%d", time.gmtime()),
    }


async def _call(measure: Measure, run: CheckRun) -> dict[str, float]:
    return await measure(run)


def run_stale(
    space: Workspace, *, tier: str, minutes: float, home: Path | None = None
) -> list[str]:
    """Re-measure stale checks of all workflows, oldest results first, while time is left."""
    deadline = time.monotonic() + 60.0 * minutes
    waiting: list[tuple[str, str]] = []
    for name in space.workflows():
        loaded = load(name, space)
        results, current = Results.read(loaded.folder), digest(loaded)
        due = [
            r
            for c in loaded.spec.checks
            if c.tier == tier
            for s in c.seeds
            if (r := results.runs.get(run_key(c, s))) and r["hash"] != current
        ]
        if due:
            waiting.append((min(run["at"] for run in due), name))
    done = []
    for _, name in sorted(waiting):
        if time.monotonic() > deadline:
            break
        run_checks(name, space, home=home, tier=tier, only_stale=True)
        done.append(name)
    return done


def _commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()
