"""A workflow's model from its transport: retries, rate, budget, cache, fallbacks and the journal.

Goes in: the workflow, what its `model` means and a connected transport. Comes out: the model that
rollouts are lent. Decision: a model that is sampled for training has no fallbacks and no cache,
since a row must come from the policy that it names.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from agentloop.errors import UsageError
from agentloop.models.cache import Cached
from agentloop.models.chain import chain
from agentloop.models.connect import ModelSpec, connect, describe, parse
from agentloop.models.fallback import Fallbacks
from agentloop.models.journal import Journaled
from agentloop.models.limits import Rate
from agentloop.models.meter import FREE, Meter
from agentloop.ports import Model
from agentloop.records import Completion, Usage
from agentloop.store.archive import Archive
from agentloop.workflows.schema import Workflow

CACHE_SCOPE = "cache"


@dataclass(frozen=True)
class ScopedJournal:
    """The archive's journal under one scope: a run's, so that a resumed run knows what it has
    spent, or the response cache's, which is no run's cost."""

    archive: Archive
    scope: str

    def call(self, key: str) -> Completion | None:
        """The reply recorded under `key`."""
        return self.archive.call(key)

    async def add_call(self, key: str, completion: Completion) -> None:
        """Record a reply; durable when this returns."""
        await self.archive.add_call(key, completion, scope=self.scope)

    async def add_unanswered(self, usage: Usage, known: bool) -> None:
        """Note what an attempt without a reply used; durable when this returns."""
        await self.archive.add_unanswered(usage, known, scope=self.scope)


class _Notes:
    """Writes what the meter tells of attempts without a reply, together with what else is written
    at that moment: a server that goes down breaks many at once."""

    def __init__(self, journal: ScopedJournal) -> None:
        self._journal = journal
        self._writing: set[asyncio.Task[None]] = set()

    def __call__(self, usage: Usage, known: bool) -> None:
        task = asyncio.create_task(self._journal.add_unanswered(usage, known))
        self._writing.add(task)
        task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._writing.discard(task)

    async def close(self) -> None:
        """Wait for the notes under way. Raises `StoreError` when one could not be made."""
        await asyncio.gather(*self._writing)


def check_calls(
    workflow: Workflow, model: ModelSpec, environ: Mapping[str, str] = os.environ
) -> None:
    """Raises `UsageError` when fallbacks, cache, prices, budget or keys do not fit the model."""
    if model.kind == "scripted":  # a rehearsal calls nobody
        return
    specs = [model, *(_fallback(name, model, environ) for name in workflow.fallbacks)]
    twice = next((spec for spec in specs if specs.count(spec) > 1), None)
    if twice is not None:
        raise UsageError(f"`{twice.model}` stands twice in `fallbacks`; name each model once")
    _one_host_a_key(specs)
    if workflow.cache and not model.local:
        for spec in specs:
            if not spec.model:
                raise UsageError(
                    "`cache: true` needs a model with a name, or another one's replies could be "
                    f"given out; write `model: {spec.base_url}#NAME`"
                )
    if not model.local:
        _priced(workflow, specs)


def _priced(workflow: Workflow, specs: Sequence[ModelSpec]) -> None:
    """Raises `UsageError` where dollars are limited and no price can ever be known."""
    limited, instead = "", ""
    budgets = (workflow.budget, workflow.budget.month)
    if any(one.usd is not None and one.tokens is None for one in budgets):
        limited, instead = "budget.usd", "limit `budget.tokens` as well"  # they end such a run
    if workflow.limits.usd is not None:
        limited, instead = "limits.usd", "leave it out: `limits.tokens` holds in any case"
    if not limited:
        return
    meter = Meter(prices=prices(workflow, specs[0]))
    for spec in specs:
        told = spec.kind == "litellm" or (not spec.model and workflow.prices)  # by the reply
        if not told and meter.estimate(1, 1, 1, model=spec.model) is None:
            name = spec.model or '"*"'
            raise UsageError(
                f"`{limited}` cannot be kept without the price of `{spec.model or spec.base_url}`; "
                f"add `prices: {{{name}: {{prompt: X, completion: Y}}}}` (dollars per million "
                f"tokens), or {instead}"
            )


def lend_model(
    workflow: Workflow, spec: ModelSpec, transport: Model, *, meter: Meter,
    journal: ScopedJournal | None, stack: AsyncExitStack,
) -> Model:  # fmt: skip
    """The whole chain (see `agentloop.models`). `stack` closes transports of fallbacks, and waits
    for what is still being recorded. Without a journal nothing that is asked or replied
    is kept, in the response cache neither."""

    def one(spec: ModelSpec, transport: Model) -> Model:
        model = _chained(workflow, spec, transport, meter)
        if not workflow.cache or spec.local or journal is None:
            return model
        identity = f"{spec.kind} {spec.base_url} {spec.model}"
        cached = Cached(model, ScopedJournal(journal.archive, CACHE_SCOPE), identity=identity)
        stack.push_async_callback(cached.close)
        return cached

    model = one(spec, transport)
    if workflow.fallbacks and not spec.local:
        models = [("", model)]
        for name in workflow.fallbacks:
            other = parse(name)
            connection = connect(other)
            stack.push_async_callback(connection.close)
            models.append((name, one(other, connection)))
        model = Fallbacks(models)
    if journal is None:
        return model
    notes = _Notes(journal)
    stack.push_async_callback(notes.close)
    meter.on_unanswered = notes
    journaled = Journaled(model, journal)
    stack.push_async_callback(journaled.close)
    return journaled


def prices(workflow: Workflow, spec: ModelSpec) -> Mapping[str, tuple[float, float]]:
    """Dollars per million prompt and completion tokens; a local model is free."""
    if spec.local:
        return FREE
    return {name: (price.prompt, price.completion) for name, price in workflow.prices.items()}


def _chained(workflow: Workflow, spec: ModelSpec, transport: Model, meter: Meter) -> Model:
    return chain(
        transport, meter, model=spec.model, rate=Rate(**workflow.rate.model_dump()),
        attempts=workflow.retries.attempts, deadline=workflow.retries.deadline,
    )  # fmt: skip


def _one_host_a_key(specs: Sequence[ModelSpec]) -> None:
    hosts: dict[str, str] = {}
    for spec in specs:
        variable, host = spec.key_variable, describe(spec)["host"]
        if variable and hosts.setdefault(variable, host) != host:
            base = variable.replace("_API_KEY", "_BASE_URL")
            raise UsageError(
                f"`{variable}` would go to `{hosts[variable]}` and to `{host}`, and a key goes to "
                f"one host; set {base} to the address that it is for"
            )


def _fallback(name: str, model: ModelSpec, environ: Mapping[str, str]) -> ModelSpec:
    if model.served:
        raise UsageError(
            f"`fallbacks` cannot stand behind the local model `{model.kind}`: its replies are "
            "trained on, and another model's would be mixed in; remove them or use an API model"
        )
    spec = parse(name, environ)
    if spec.local:
        raise UsageError(f"`{name}` cannot be a fallback: it is local; name an API model")
    return spec


__all__ = ["ScopedJournal", "check_calls", "lend_model", "prices"]
