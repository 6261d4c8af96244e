"""Forks: a recorded rollout up to one of its model calls, and from there on live.

Goes in: an episode, a step and a bench. Comes out: new episodes in the log, each with its parent
and its step. Decision: what happened before the step (replies and tool results) is told from the
record, no model is asked and no tool runs; a tool with a state of its own starts afresh at the
step. The first fork has the seeds of its parent, so that one that changes nothing is the same
record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, count, zip_longest

from agentloop.errors import UsageError
from agentloop.graphs.load import reference_of
from agentloop.graphs.recorded import RecordedModel, calls_of, steps_of
from agentloop.graphs.recorded_tools import recorded_graph, recorded_tools, told_only
from agentloop.lanes.bench import Bench, Order
from agentloop.ports import Model
from agentloop.records import (
    Attempt,
    Bundle,
    Completion,
    Episode,
    Node,
    Request,
    attempt_of,
    content_id,
)
from agentloop.store.archive import Archive
from agentloop.store.exchange import FORK, foreign
from agentloop.workflows.rerun import (
    first_difference,
    impossible,
    journal_of,
    setup_of,
)

ROUNDING = 1e-4
"""An engine adds in another order when other requests are in its batch or its cache."""


@dataclass(frozen=True)
class Fork:
    """What to fork: the call number `step` (from 0) of `parent` is the first live one."""

    parent: Episode
    step: int
    n: int = 1


def check(archive: Archive, parent: Episode, step: int) -> None:
    """Raises `UsageError` when the episode cannot be forked, or has no such step."""
    reason = impossible(replace(parent, failure=None))
    if reason:
        raise UsageError(f"`{parent.id}` cannot be forked: {reason}")
    calls = steps_of(parent, journal_of(archive, parent))
    if not 0 <= step <= calls:
        raise UsageError(
            f"`{parent.id}` has {calls} model calls; give --at a number from 0 to {calls}"
        )


async def fork(
    bench: Bench, order: Fork, bundle: str, *, begin: Callable[[], None] = lambda: None
) -> list[Episode]:
    """The forks, scored and in the log. `begin` is called once the recorded part was told, before
    anything is asked. Raises `UsageError` when that part can no longer be made again, with the
    first difference."""
    graph = setup_of(order.parent).graph
    here = reference_of(bench.runner.graph)
    if graph != here:
        raise UsageError(
            f"`{order.parent.id}` was made by the graph `{graph}` and the workflow has `{here}`; "
            f"fork it with --set graph={graph}"
        )
    bench.afford(order.n)
    attempts = await _attempts(bench, order, bundle)
    live = _Live(bench.model, cache(begin))
    made = await asyncio.gather(*(_one(bench, order, attempt, live) for attempt in attempts))
    return list(made)


async def _attempts(bench: Bench, order: Fork, bundle: str) -> Sequence[Attempt]:
    parent = order.parent
    subjects = [f"fork {parent.id}/{order.step}/{number}" for number in range(order.n)]
    ask = Order(purpose=parent.purpose, subject=subjects[0])
    [fresh] = await bench.orders([parent.task], bench.archive.get(bundle, Bundle), ask)
    base = attempt_of(parent)
    if fresh.bundle != parent.bundle:
        base = replace(
            base, bundle=fresh.bundle, policy=fresh.policy, system=fresh.system,
            skills=fresh.skills,
        )  # fmt: skip
    base = replace(base, run=bench.run, parent=parent.id, step=order.step)
    return [
        replace(base, subject=subject, sample=parent.sample + number)
        for number, subject in enumerate(subjects)
    ]


async def _one(bench: Bench, order: Fork, attempt: Attempt, live: _Live) -> Episode:
    parent = order.parent
    recorded = RecordedModel(
        parent, calls_of(parent, journal_of(bench.archive, parent)), until=order.step,
        live=live, system=attempt.bundle == parent.bundle,
    )  # fmt: skip
    tools = recorded_tools(
        parent, recorded, {tool.spec.name: tool for tool in bench.tools}, live=True
    )
    runner = replace(
        bench.runner, checkpoints=None,
        graph=recorded_graph(parent, recorded, bench.runner.graph),
    )  # fmt: skip
    made: list[Episode] = []
    try:
        with told_only(recorded):
            await runner.run(
                [attempt], model=_Kept(recorded, bench.archive), tools=tools, limits=bench.limits,
                on_done=made.append,
            )  # fmt: skip
    finally:
        reason = recorded.difference or recorded.missing
        if not reason:  # else it is no rollout of this bundle
            live.begin()
            made = await bench.keep(made)
    if reason:
        raise UsageError(
            f"`{parent.id}` cannot be forked at {order.step}: {reason}; "
            f"see: agentloop runs replay {parent.id}"
        )
    return made[0]


def difference(parent: Episode, made: Episode) -> str:
    """The first thing in which a fork went another way than its parent; empty when in none. Of the
    same tokens, log-probs that are `ROUNDING` apart are the same, and what an engine had in its
    cache is not compared."""
    old, new = setup_of(parent), setup_of(made)
    own = replace(new, subject=old.subject, parent=old.parent, step=old.step)
    [before], [after] = parent.trajectories, made.trajectories
    pairs = zip_longest(after.nodes, before.nodes[: len(after.nodes)])
    after = replace(after, nodes=tuple(_rounded(node, other) for node, other in pairs))
    usage = replace(made.usage, cached_tokens=parent.usage.cached_tokens)
    return first_difference(parent, replace(made, setup=own, trajectories=(after,), usage=usage))


def _rounded(node: Node, other: Node | None) -> Node:
    if other is None or node.token_ids != other.token_ids or not node.logprobs:
        return node
    theirs = other.logprobs or ()
    close = len(theirs) == len(node.logprobs) and all(
        abs(one - two) <= ROUNDING for one, two in zip(node.logprobs, theirs, strict=True)
    )
    return replace(node, logprobs=other.logprobs) if close else node


@dataclass(frozen=True)
class _Live:
    """The model that a fork goes on with; the run has begun when it is first asked."""

    model: Model
    begin: Callable[[], None]

    async def complete(self, request: Request) -> Completion:
        self.begin()
        return await self.model.complete(request)


@dataclass(frozen=True)
class _Kept:
    """Keeps the replies that were taken over under the fork's own name, so that it can be replayed
    like any other rollout."""

    model: RecordedModel
    archive: Archive

    async def complete(self, request: Request) -> Completion:
        completion = await self.model.complete(request)
        if not self.model.live:
            await self.archive.add_call(request.key, completion, scope=FORK)
        return completion


def run_id(archive: Archive, parent: str, step: int, bundle: str) -> str:
    """Of the run that these forks belong to: asked for again, those that were made are found."""
    first = content_id("run", "fork", parent, step, bundle)
    others = (content_id("run", "fork", parent, step, bundle, number) for number in count(1))
    return next(one for one in chain((first,), others) if not foreign(archive.log, one))
