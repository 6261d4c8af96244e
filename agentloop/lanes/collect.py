"""Collect: the champion practises on training tasks, with worked examples lent to it.

Goes in: the bench. Comes out: scored episodes in the log, and counts. In the first round every
task is lent the tools' own examples of being called; in later rounds each is lent the nearest
successes of the rounds before, which turns a rare success into many. What was
lent is marked in the trajectory, and training leaves it out again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from agentloop.lanes.bench import Bench, Lend, Order
from agentloop.ports import part
from agentloop.records import Episode, Json, Task
from agentloop.skills.similarity import embed
from agentloop.trajectories.examples import format_example, uses_tools

Count = Annotated[int, Field(ge=1, le=100_000)]


@part
class Explore:
    """`rounds` rounds: the first of `tasks` tasks with `samples` each, later ones of `practice`
    tasks with one sample each."""

    rounds: Count = 3
    tasks: Count = 16
    samples: Count = 2
    practice: Count = 24
    temperature: float = 0.7
    """In the first round."""
    practice_temperature: float = 0.4
    """In later rounds, where the examples already show the way."""
    examples: int = 2
    """Successes lent per task in later rounds."""
    nearness: float = 0.75
    """Cosine below which a success is of another kind than the task."""

    @property
    def rollouts(self) -> int:
        """At most so many, for the plan."""
        return self.tasks * self.samples + (self.rounds - 1) * self.practice

    async def collect(self, bench: Bench) -> Json:
        """Roll out, score, log; counts per round."""
        champion = bench.bundle(bench.champion)
        drawn = bench.tasks.draw(
            self.tasks + (self.rounds - 1) * self.practice, split="train", seed=bench.seed
        )
        start, counts = 0, list[Json]()
        episodes: list[Episode] = []
        for number in range(1, self.rounds + 1):
            size, samples = (self.tasks, self.samples) if number == 1 else (self.practice, 1)
            tasks = drawn[start : start + size]
            start += size
            order = Order(
                purpose="collect", subject=f"collect {number}", samples=samples,
                temperature=self.temperature if number == 1 else self.practice_temperature,
                lend=self.lend(bench, tasks, episodes),
            )  # fmt: skip
            made = await bench.attempt(tasks, champion, order)
            solved = sum(one.success for one in made)
            counts.append({"rollouts": len(made), "solved": solved})
            episodes += made
        return {"rounds": counts}

    def lend(self, bench: Bench, tasks: Sequence[Task], seen: Sequence[Episode]) -> Lend:
        """For each task the nearest of the successes `seen` in earlier rounds, the shortest first
        among those equally near, the best one last (a model imitates the last most), and those that
        used a tool where there are any. Only earlier
        rounds count, so that a resumed cycle lends the same."""
        first = "\n\n".join(tool.spec.examples for tool in bench.tools)
        found = [one for one in seen if one.success]
        found = [one for one in found if uses_tools(one)] or found
        texts = [format_example(one) for one in found]
        lent: dict[str, list[str]] = {}
        if found and tasks:
            known = embed([one.task.prompt for one in found], bench.embedder)
            near = embed([task.prompt for task in tasks], bench.embedder) @ known.T
            for task, row in zip(tasks, near, strict=True):
                ranks = [(-round(float(row[at]), 2), len(texts[at])) for at in range(len(texts))]
                order = sorted(range(len(texts)), key=ranks.__getitem__)
                chosen = list(dict.fromkeys(texts[at] for at in order))[: self.examples][::-1]
                strange = row.max() < self.nearness
                lent[task.id] = [first, *chosen] if strange else chosen
        return lambda task: lent.get(task.id, [first])
