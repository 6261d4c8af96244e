"""Collect: the champion practises on training tasks, with its own successes lent as examples.

Goes in: the bench. Comes out: scored episodes in the log, and counts. The first round samples the
champion as it is. In later rounds each task is lent the nearest successes so far (found by
meaning), which turns a rare success into many; what is lent is recorded in the
prompt that the episode keeps, and training leaves it out again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agentloop.lanes.bench import Bench, Lend, Order
from agentloop.ports import part
from agentloop.records import Episode, Json, Task
from agentloop.skills.similarity import embed
from agentloop.trajectories.examples import format_example, uses_tools

_HEADING = "## Worked examples"


@part
class Explore:
    """`rounds` of `tasks` tasks with `samples` each; the first is the champion alone."""

    rounds: int = 2
    tasks: int = 16
    """Tasks in the first round."""
    samples: int = 2
    """Samples of each task in the first round."""
    temperature: float = 0.8
    practice: int = 16
    """Tasks in each later round, one sample each."""
    examples: int = 2
    """Successes lent per task in later rounds."""
    practice_temperature: float = 0.3
    nearness: float = 0.75
    """Cosine below which a success is no example for a task."""

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
        order = Order(
            purpose="collect",
            subject="collect 1",
            samples=self.samples,
            temperature=self.temperature,
        )
        episodes = await bench.attempt(drawn[: self.tasks], champion, order)
        counts: list[Json] = [_count(episodes)]
        for number in range(1, self.rounds):
            start = self.tasks + (number - 1) * self.practice
            tasks = drawn[start : start + self.practice]
            lent = self.lend(bench, tasks, episodes)
            order = Order(
                purpose="collect",
                subject=f"collect {number + 1}",
                temperature=self.practice_temperature,
                lend=lent,
            )
            made = await bench.attempt(tasks, champion, order)
            counts.append(_count(made))
            episodes += made
        return {"rounds": counts}

    def lend(self, bench: Bench, tasks: Sequence[Task], seen: Sequence[Episode]) -> Lend:
        """For each task the nearest of the successes `seen` in earlier rounds, those that used a
        tool where there are any. Only earlier rounds count, so that a resumed cycle lends the
        same."""
        found = [one for one in seen if one.success]
        found = [one for one in found if uses_tools(one)] or found
        lent: dict[str, list[str]] = {}
        if found and tasks:
            known = embed([one.task.prompt for one in found], bench.embedder)
            near = embed([task.prompt for task in tasks], bench.embedder) @ known.T
            for task, row in zip(tasks, near, strict=True):
                order = [at for at in np.argsort(-row, kind="stable") if row[at] >= self.nearness]
                texts = list(dict.fromkeys(format_example(found[at]) for at in order))
                lent[task.id] = [_HEADING, *texts[: self.examples]] if texts else []
        return lambda task: lent.get(task.id, [])


def _count(episodes: Sequence[Episode]) -> dict[str, Json]:
    return {"rollouts": len(episodes), "solved": sum(one.success for one in episodes)}
