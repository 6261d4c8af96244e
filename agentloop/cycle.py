"""The whole path once: collect, propose in lanes, gate, promote, report.

Goes in: a `Kit` assembled from a workflow. Comes out: a `Report` (the JSON contract of
`agentloop cycle --json`). Each stage is a step keyed by (cycle, stage, plan hash): a killed cycle
runs again from the top, and every finished step, episode and model call is read back from the log
instead of being made again. Steps, verdicts and promotions carry the fences of the leases they were
made under: of two processes at one cycle only the one that holds them now writes.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import count

from agentloop.errors import (
    AgentLoopError,
    BudgetReached,
    ModelError,
    PolicyError,
    ServerError,
    StoreError,
    UsageError,
)
from agentloop.lanes import heldout
from agentloop.lanes.decide import Decision, Judge
from agentloop.live import canary
from agentloop.records import Json, Proposal, content_id
from agentloop.store.archive import Archive
from agentloop.store.exchange import foreign
from agentloop.store.held import leased
from agentloop.store.query import Fence, Fences
from agentloop.trajectories.codec import from_json, to_json
from agentloop.workflows.assemble import Kit
from agentloop.workflows.report import Report, cost_of, make_report


def open_cycle(
    archive: Archive, workflow: str, seed: int, *, plan: str, resume: bool, again: bool
) -> tuple[str, Report | None]:
    """The id of the cycle to run, and its report when it has already finished. Nothing is
    written: a cycle begins when its tasks were found to be readable.

    Raises `UsageError` when an unfinished one stands in the way, or when the workflow, its model
    or its tasks are not those that it began with.
    """
    ids = (
        one
        for one in (_cycle_id(workflow, seed, number) for number in count())
        if not foreign(archive.log, one)  # another home's, whose rollouts were imported
    )
    current = next(ids)
    while archive.log.get("cycle", following := next(ids)) is not None:
        current = following
    begun = archive.log.get("cycle", current)
    if begun is None or again:
        return (current if begun is None else following), None
    known = reopen(archive, workflow, current, plan=plan)
    if known is not None:
        return current, known
    if not resume:
        raise UsageError(
            f"cycle {current} of `{workflow}` with seed {seed} is unfinished; "
            "continue it with --resume, or start another with --again"
        )
    return current, None


def reopen(archive: Archive, workflow: str, cycle_id: str, *, plan: str) -> Report | None:
    """The report of a cycle that was finished, `None` of one that is to be run. Raises
    `UsageError` when the workflow, its model or its tasks are not those that it began with."""
    begun = archive.log.get("cycle", cycle_id)
    if begun is None:
        return None
    if isinstance(begun.body, dict) and begun.body["plan"] != plan:
        raise UsageError(
            f"`{workflow}`, its model or its tasks are not those that cycle {cycle_id} began with; "
            "repeat its options, or start another with --again"
        )
    report = archive.step(cycle_id, "report")
    return None if report is None else from_json(Report, report)


def _cycle_id(workflow: str, seed: int, number: int) -> str:
    return content_id("cycle", workflow, seed, number)


async def cycle(kit: Kit, under: Fence | None = None) -> Report:
    """Run (or finish) the kit's cycle and return its report. Nothing is noted or promoted once the
    lease `under`, of a scheduler, was lost. Raises `LeaseHeld` while another process runs one."""
    bench = kit.bench
    started = time.monotonic()
    tasks = heldout.split(bench.tasks, kit.cycle_id, n=kit.heldout_n, lanes=kit.lane_n)
    async with leased(bench.archive.log, f"cycle/{kit.name}") as fence:
        fences: Fences = (fence, under) if under else fence
        body: dict[str, Json] = {"workflow": kit.name, "seed": bench.seed, "plan": kit.plan}
        bench.archive.add_event("cycle", kit.cycle_id, kit.name, body)
        champion = await step(kit, "champion", _value(bench.champion), fences)
        bench.champion = str(champion)
        await step(kit, "collect", lambda: kit.collector.collect(bench), fences)
        proposals = [await propose(kit, name, fences) for name in kit.lanes]
        ids = [task.id for task in tasks.final]
        tasks = replace(tasks, use=heldout.use_of(bench.archive, kit.name, kit.cycle_id, ids))
        decision = await Judge(bench, kit.gate, tasks, kit.probes).decide(proposals)
        decision = record(kit, decision, fences)
        seconds = round(time.monotonic() - started, 1)
        cost = cost_of(kit.meter, bench.archive, kit.cycle_id, seconds)
        report = make_report(kit.cycle_id, proposals, decision, cost=cost, champion=bench.champion)
        bench.archive.add_step(kit.cycle_id, "report", to_json(report), fence=fences)
        return report


async def propose(kit: Kit, name: str, fence: Fences | None = None) -> Proposal:
    """One lane's proposal. A lane that fails does not stop the others; a spent budget, a model that
    cannot be reached and a mistake in the workflow do, and the cycle can be resumed."""

    async def make() -> Json:
        started = time.monotonic()
        try:
            proposal = to_json(await kit.lanes[name].propose(kit.bench))
        except PolicyError as error:
            proposal = {"lane": name, "state": "failed", "reason": str(error)}
        except (BudgetReached, ModelError, ServerError, StoreError, UsageError):
            raise
        except AgentLoopError as error:
            proposal = {"lane": name, "state": "failed", "reason": str(error)}
        return {**proposal, "seconds": round(time.monotonic() - started, 1)}

    return from_json(Proposal, await step(kit, f"propose-{name}", make, fence))


async def step(
    kit: Kit, name: str, make: Callable[[], Awaitable[Json]], fence: Fences | None = None
) -> Json:
    """The output of a stage: read back when the log has it, made and recorded otherwise. What goes
    on from here is what the log has, so that a resumed cycle goes on from the same."""
    key = f"{name}/{kit.plan}"
    if kit.bench.archive.step(kit.cycle_id, key) is None:
        kit.bench.archive.add_step(kit.cycle_id, key, await make(), fence=fence)
    return kit.bench.archive.step(kit.cycle_id, key)


def record(kit: Kit, decision: Decision, fence: Fences) -> Decision:
    """Every verdict into the log, and the promotion with it; a holder that lost a lease
    writes neither, and a champion that was moved meanwhile stays. The decision as it was carried
    out: what has to wait for a canary is not passed, and its reason says so."""
    archive, final = kit.bench.archive, decision.final
    for verdict in decision.verdicts:
        archive.add_verdict(verdict, kit.cycle_id, scope=kit.name, fence=fence)
    serving = archive.alias(kit.alias)
    if final is None or not final.passed or serving is None or serving.bundle == decision.bundle:
        return decision
    reason = f"promoted by {kit.cycle_id}"
    if any(pointer.reason == reason for pointer in archive.alias_history(kit.promoted)):
        return decision  # before it was killed; what a person did since stays
    moved = serving.bundle != kit.bench.champion
    if kit.promoted != kit.alias:
        why = "the champion was moved meanwhile" if moved else ""
        why = why or canary.offer(archive, kit.name, decision.bundle, reason=reason, fence=fence)
        late = replace(final, passed=False, reason=f"{final.reason}; left out: {why}")
        return replace(decision, final=late) if why else decision
    if moved:
        raise UsageError(
            f"`{kit.name}` was given another champion while cycle {kit.cycle_id} ran; "
            "judge against that one with --again"
        )
    archive.point(kit.promoted, decision.bundle, reason=reason, scope=kit.name, fence=fence)
    return decision


def _value(value: Json) -> Callable[[], Awaitable[Json]]:
    async def make() -> Json:
        return value

    return make
