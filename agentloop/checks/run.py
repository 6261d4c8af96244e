"""Measure a workflow's checks: one run per (measure, ablation, seed), results written after each.

Goes in: a workflow's name. Comes out: `results.json`, the tables, and a `CheckResult` per check.
Resumable: finished runs are in the file, and a run's cycle continues in a home of its own.
"""

from __future__ import annotations

import asyncio
import math
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from agentloop.checks.render import render
from agentloop.checks.results import CheckResult, Results, digest, run_key
from agentloop.cycle import cycle, open_cycle
from agentloop.errors import UnknownName, UsageError
from agentloop.ports import Progress, silent
from agentloop.records import Json
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
        with Archive(self.home) as archive:
            plan = plan_hash(self.loaded, None, None, self.seed)
            cycle_id, finished = open_cycle(
                archive, self.loaded.name, self.seed, plan=plan, resume=True, again=False
            )
            if finished is not None:
                return finished
            async with assemble(self.loaded, archive, self.options(cycle_id)) as kit:
                return await cycle(kit)

    async def reports(self, cycles: int) -> list[Report]:
        """Of so many cycles in this home, one after the other, each on tasks of its own."""
        each = (replace(self, seed=self.seed + 1000 * number) for number in range(cycles))
        return [await run.report() for run in each]

    def beside(self, name: str, changes: Mapping[str, Json]) -> CheckRun:
        """The same run with keys of the workflow changed, in a home of its own: another arm."""
        changed = load(str(self.loaded.path), self.workspace, changes)
        return replace(self, loaded=changed, home=find_home(self.home / name))


Measure = Callable[[CheckRun], Awaitable[dict[str, float]]]


async def measure_cycle(run: CheckRun) -> dict[str, float]:
    """The default measure: the numbers of one cycle's report, dotted."""
    report = await run.report()
    held = report.heldout
    metrics: dict[str, float | None] = {
        "heldout.n": held.n, "heldout.champion": held.champion, "heldout.p": held.p,
        "heldout.challenger": held.challenger, "heldout.effect": held.effect,
        "seconds": report.cost.seconds, "tokens": report.cost.tokens,
        "promoted": float(report.state == "promoted"),
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
    """Measure what is missing or stale, writing results after each run and the tables at the end;
    every check's result. A run that was finished before is not repeated."""
    loaded = load(workflow, space)
    results, current = Results.read(loaded.folder), digest(loaded)
    try:
        for check, seed in due(workflow, space, tier=tier, only_stale=only_stale):
            changed = loaded.spec.ablations[check.ablation] if check.ablation else {}
            # A home named after all that decides the run: what was begun is continued there.
            name = f"{loaded.name}-{check.ablation or 'full'}-{seed}-{current}"
            run = CheckRun(
                load(str(loaded.path), space, changed), space,
                find_home(find_home(home) / "checks" / name), seed, progress,
            )  # fmt: skip
            began = time.monotonic()
            results.runs[run_key(check, seed)] = {
                "metrics": _measure(check, run),
                "hash": current,
                "seconds": round(time.monotonic() - began, 1),
                "commit": _commit(loaded.folder),
                "at": time.strftime("%Y-%m-%d", time.gmtime()),
            }
            results.write()
    finally:
        render(loaded)
    return [results.result(check, current) for check in _chosen(loaded, tier)]


def due(
    workflow: str, space: Workspace, *, tier: str | None = None, only_stale: bool = False
) -> list[tuple[Check, int]]:
    """(check, seed) of each run that is to be made: those never made (unless `only_stale`) and
    those made by other code. Checks that share a run are listed once."""
    loaded = load(workflow, space)
    results, current = Results.read(loaded.folder), digest(loaded)
    runs: dict[str, tuple[Check, int]] = {}
    for check in _chosen(loaded, tier):
        for seed in check.seeds:
            known = results.runs.get(run_key(check, seed))
            if known is None:
                wanted = not only_stale
            else:
                wanted = known["hash"] != current or check.metric not in known["metrics"]
            if wanted:
                runs.setdefault(run_key(check, seed), (check, seed))
    return list(runs.values())


def run_stale(root: Path, *, tier: str, minutes: float, home: Path | None = None) -> list[str]:
    """Re-measure the stale checks of a workspace's workflows, oldest results first, while time is
    left; the names of those measured."""
    deadline = time.monotonic() + 60.0 * minutes
    space = Workspace((root,))
    waiting: list[tuple[str, str]] = []
    for name, path in space.workflows().items():
        if not any(check.tier == tier for check in load(name, space).spec.checks):
            continue
        known = Results.read(path.parent).runs
        dates = [known[run_key(*one)]["at"] for one in due(name, space, tier=tier, only_stale=True)]
        if dates:
            waiting.append((min(dates), name))
    done = []
    for _, name in sorted(waiting):
        if time.monotonic() > deadline:
            break
        run_checks(name, space, home=home, tier=tier, only_stale=True)
        done.append(name)
    return done


def _chosen(loaded: Loaded, tier: str | None) -> list[Check]:
    checks = [check for check in loaded.spec.checks if tier in (None, check.tier)]
    if not checks:
        kind = f"{tier} checks" if tier else "checks"
        raise UsageError(f"`{loaded.name}` has no {kind}; add some under `checks` in {loaded.path}")
    return checks


def _measure(check: Check, run: CheckRun) -> dict[str, float]:
    """The measure's numbers. Raises `UnknownName` when the check's metric is not among them."""
    folder = run.loaded.folder
    measure = cast(Measure, resolve(check.use, folder)) if check.use else measure_cycle
    metrics = asyncio.run(_call(measure, run))
    if check.metric not in metrics:
        raise UnknownName(f"metric of check `{check.id}`:", check.metric, metrics)
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        raise UsageError(f"check `{check.id}` gave no finite number for {', '.join(wrong)}")
    return {name: float(f"{value:.6g}") for name, value in metrics.items()}


async def _call(measure: Measure, run: CheckRun) -> dict[str, float]:
    return await measure(run)


def _commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()
