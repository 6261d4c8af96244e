"""Collect groups: several samples of each task by the champion as it is served, nothing lent.

Goes in: the bench. Comes out: scored episodes in the log, and counts. Methods that weigh a sample
by its probability learn from exactly the prompt that it was sampled under, so nothing stands in it
that will not be there when the policy serves.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from agentloop.lanes.bench import Bench, Order
from agentloop.ports import part
from agentloop.records import Json


@part
class Sample:
    """`samples` of each of `tasks` tasks."""

    tasks: Annotated[int, Field(ge=1, le=100_000)] = 16
    samples: Annotated[int, Field(ge=1, le=10_000)] = 8
    temperature: Annotated[float, Field(gt=0.0)] = 1.0

    @property
    def rollouts(self) -> int:
        """At most so many, for the plan."""
        return self.tasks * self.samples

    async def collect(self, bench: Bench) -> Json:
        """Roll out, score, log; how many were made and solved."""
        tasks = bench.tasks.draw(self.tasks, split="train", seed=bench.seed)
        order = Order(
            purpose="collect", subject="sample", samples=self.samples, temperature=self.temperature
        )
        made = await bench.attempt(tasks, bench.bundle(bench.champion), order)
        return {"rollouts": len(made), "solved": sum(one.success for one in made)}
