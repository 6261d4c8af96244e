"""What the tests of replays share: rollouts with what the journal kept, and the same run again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rollout_fixtures import add, react, rollouts

from agentloop.graphs.recorded import Kept, RecordedModel, calls_of
from agentloop.graphs.recorded_tools import recorded_graph, recorded_tools, told_only
from agentloop.graphs.run import Runner
from agentloop.models.scripted import Scripted
from agentloop.records import Completion, Episode, Request, attempt_of
from agentloop.workflows.rerun import first_difference


class Noting:
    """A model whose replies are kept as the journal would."""

    def __init__(self, reply: Callable[[Request], Any], delay: Callable[[int], float]) -> None:
        self.inner, self.delay = Scripted(reply), delay
        self.kept: list[Kept] = []

    async def complete(self, request: Request) -> Completion:
        key = request.key.rpartition("/")[2]
        await asyncio.sleep(self.delay(int(key.partition("-")[0])))
        completion = await self.inner.complete(request)
        self.kept.append(Kept(key, completion))
        return completion


def record(
    reply: Callable[[Request], Any], *, delay: Callable[[int], float] = lambda number: 0.0,
    **options: Any,
) -> tuple[Episode, list[Kept]]:  # fmt: skip
    model = Noting(reply, delay)
    [episode] = rollouts(model, **options)
    return episode, model.kept


def again(
    episode: Episode, kept: list[Kept], graph: Any = None, tools: Any = (add,)
) -> tuple[Episode, str]:
    """The record made again, and the first thing that was done otherwise."""
    made, model = played(episode, kept, graph, tools)
    assert model.missing == ""
    return made, model.difference


def played(
    episode: Episode, kept: list[Kept], graph: Any = None, tools: Any = (), **fork: Any
) -> tuple[Episode, RecordedModel]:
    """The record made again, and the model that told it; `fork` is that model's."""
    setup = episode.setup
    assert setup is not None

    async def run() -> tuple[Episode, RecordedModel]:
        model = RecordedModel(episode, calls_of(episode, kept), **fork)
        runner = Runner(
            recorded_graph(episode, model, graph if graph is not None else react()),
            native_tools=setup.native_tools,
        )  # fmt: skip
        lent_tools = recorded_tools(episode, model, {one.spec.name: one for one in tools})
        with told_only(model):
            [made] = await runner.run(
                [attempt_of(episode)], model=model, tools=lent_tools, limits=setup.limits
            )
        return made, model

    return asyncio.run(run())


def identical(episode: Episode, kept: list[Kept], **options: Any) -> None:
    """Made again, it is the same to the last field."""
    made, difference = again(episode, kept, **options)
    assert difference == ""
    assert first_difference(episode, made) == ""
    bare = {"started": 0.0, "seconds": 0.0}
    assert replace(made, **bare) == replace(episode, **bare)
