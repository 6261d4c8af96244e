"""The whole path once: collect, propose in lanes, gate, promote, report.

Goes in: a `Kit` assembled from a workflow. Comes out: a `Report` (the JSON contract of
`agentloop cycle --json`). Each stage is a step keyed by (cycle, stage, plan hash): a killed cycle
runs again from the top, and every finished step, episode and model call is read back from the log
instead of being made again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from agentloop.errors import (
    AgentLoopError,
    BudgetReached,
    ModelError,
    ServerError,
    StoreError,
    UsageError,
)
from agentloop.lanes.decide import Decision, Judge
from agentloop.records import Json, Proposal, content_id
from agentloop.store.archive import Archive
from agentloop.store.leases import holder
from agentloop.store.log import Log
from agentloop.store.query import Fence
from agentloop.trajectories.codec import from_json, to_json
from agentloop.workflows.assemble import Kit
from agentloop.workflows.report import Cost, Report, make_report

LEASE_SECONDS = 120.0


def open_cycle(
    archive: Archive, workflow: str, seed: int, *, plan: str, resume: bool, again: bool
) -> tuple[str, Report | None]:
    """The id of the cycle to run, and its report when it has already finished. Nothing is
    written: a cycle begins when its tasks were found to be readable.

    Raises `UsageError` when an unfinished one stands in the way, or when the workflow, its model
    or its tasks are not those that it began with.
    """
    number = 0
    while (archive.log.get("cycle", _cycle_id(workflow, seed, number + 1))) is not None:
        number += 1
    current = _cycle_id(workflow, seed, number)
    begun = archive.log.get("cycle", current)
    report = archive.step(current, "report") if begun else None
    if begun is None or again:
        if begun is not None:
            number += 1
        return _cycle_id(workflow, seed, number), None
    changed = isinstance(begun.body, dict) and begun.body["plan"] != plan
    if changed:
        raise UsageError(
            f"`{workflow}`, its model or its tasks are not those that cycle {current} began with; "
            "repeat its options, or start another with --again"
        )
    if report is not None:
        return current, from_json(Report, report)
    if not resume:
        raise UsageError(
            f"cycle {current} of `{workflow}` with seed {seed} is unfinished; "
            "continue it with --resume, or start another with --again"
        )
    return current, None


def _cycle_id(workflow: str, seed: int, number: int) -> str:
    return content_id("cycle", workflow, seed, number)


async def cycle(kit: Kit) -> Report:
    """Run (or finish) the kit's cycle and return its report."""
    bench = kit.bench
    started = time.monotonic()
    heldout = bench.tasks.draw(kit.heldout_n, split="heldout", seed=bench.seed)
    async with leased(bench.archive.log, f"cycle/{kit.name}") as fence:
        body: dict[str, Json] = {"workflow": kit.name, "seed": bench.seed, "plan": kit.plan}
        bench.archive.add_event("cycle", kit.cycle_id, kit.name, body)
        champion = await step(kit, "champion", _value(bench.champion))
        bench.champion = str(champion)
        await step(kit, "collect", lambda: kit.collector.collect(bench))
        proposals = [await propose(kit, name) for name in kit.lanes]
        decision = await Judge(bench, kit.gate, heldout, kit.lane_n).decide(proposals)
        record(kit, decision, fence)
        cost = Cost(
            usd=kit.meter.total.usd,
            tokens=kit.meter.total.tokens,
            seconds=round(time.monotonic() - started, 1),
        )
        report = make_report(kit.cycle_id, proposals, decision, cost=cost, champion=bench.champion)
        bench.archive.add_step(kit.cycle_id, "report", to_json(report), fence=fence)
        return report


async def propose(kit: Kit, name: str) -> Proposal:
    """One lane's proposal. A lane that fails does not stop the others; a spent budget, a model that
    cannot be reached and a mistake in the workflow do, and the cycle can be resumed."""

    async def make() -> Json:
        started = time.monotonic()
        try:
            proposal = to_json(await kit.lanes[name].propose(kit.bench))
        except (BudgetReached, ModelError, ServerError, StoreError, UsageError):
            raise
        except AgentLoopError as error:
            proposal = {"lane": name, "state": "failed", "reason": str(error)}
        return {**proposal, "seconds": round(time.monotonic() - started, 1)}

    return from_json(Proposal, await step(kit, f"propose-{name}", make))


async def step(kit: Kit, name: str, make: Callable[[], Awaitable[Json]]) -> Json:
    """The output of a stage: read back when the log has it, made and recorded otherwise."""
    key = f"{name}/{kit.plan}"
    known = kit.bench.archive.step(kit.cycle_id, key)
    if known is None:
        known = await make()
        kit.bench.archive.add_step(kit.cycle_id, key, known)
    return known


def record(kit: Kit, decision: Decision, fence: Fence) -> None:
    """Every verdict into the log, and the promotion with it; a holder that lost its lease, or a
    champion that was moved meanwhile, promotes nothing."""
    archive = kit.bench.archive
    for verdict in (*decision.alone.values(), decision.joint, *decision.without.values(),
                    decision.final):  # fmt: skip
        if verdict is not None:
            archive.add_verdict(verdict, kit.cycle_id)
    serving = archive.alias(kit.alias)
    promoted = decision.final is not None and decision.final.passed
    if not promoted or serving is None or serving.bundle == decision.bundle:
        return
    if serving.bundle != kit.bench.champion:
        raise UsageError(
            f"`{kit.name}` was given another champion while cycle {kit.cycle_id} ran; "
            "judge against that one with --again"
        )
    reason = f"promoted by {kit.cycle_id}"
    there = archive.alias(kit.promoted)
    if there is None or there.bundle != decision.bundle:  # a resumed cycle restarts no canary
        archive.point(kit.promoted, decision.bundle, reason=reason, scope=kit.name, fence=fence)


@asynccontextmanager
async def leased(log: Log, name: str) -> AsyncIterator[tuple[str, int]]:
    """Hold a lease while the block runs, renewed well before it would expire."""
    token = log.lease(name, holder(), LEASE_SECONDS)

    async def renew() -> None:
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            await asyncio.to_thread(log.renew, name, token, LEASE_SECONDS)

    heart = asyncio.create_task(renew())
    try:
        yield name, token
    finally:
        heart.cancel()
        log.release(name, token)


def _value(value: Json) -> Callable[[], Awaitable[Json]]:
    async def make() -> Json:
        return value

    return make
