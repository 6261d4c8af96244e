"""What only this workflow has: a collector that samples hard tasks more often, a reward that fines
degenerate text, and the scripted model.

Goes in: tasks, or episodes. Comes out: episodes in the log, or scores. A score's value stays in
[0, 1]; the reward that is learned from, which may be -1, is its part `reward`.
"""

from __future__ import annotations

import re
import statistics
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from agentloop.datasets.groups import sampled_text, trained
from agentloop.lanes.bench import Bench, Order
from agentloop.ports import part
from agentloop.records import Episode, Json, Request, Score, Task
from agentloop.rewards.penalties import Patterns
from agentloop.rewards.verify import Numeric

Count = Annotated[int, Field(ge=1, le=10_000)]
SOURCE = "penalised"


@part
class SampleBudget:
    """`samples` of each of `tasks` tasks, and `most` of those whose rate is then below `below`:
    only there does a larger group pay. The first samples count in the larger group."""

    tasks: Count = 24
    samples: Count = 8
    most: Count = 64
    below: Annotated[float, Field(ge=0, le=1)] = 0.1
    temperature: Annotated[float, Field(gt=0)] = 1.1

    @property
    def rollouts(self) -> int:
        """At most so many, for the plan."""
        return self.tasks * max(self.samples, self.most)

    async def collect(self, bench: Bench) -> Json:
        """Roll out, score, log; what each round came to."""
        champion = bench.bundle(bench.champion)
        drawn = bench.tasks.draw(self.tasks, split="train", seed=bench.seed)
        order = Order(
            purpose="collect", subject="collect", samples=self.samples,
            temperature=self.temperature,
        )  # fmt: skip
        made = await bench.attempt(drawn, champion, order)
        hard = self.hard(drawn, made)
        more = list[Episode]()
        if hard and self.most > self.samples:
            # The same order but for its size: samples that were made already are found in the log.
            larger = replace(order, samples=self.most, label="collect hard")
            more = await bench.attempt(hard, champion, larger)
        return {
            "rollouts": len(made), "solved": sum(one.success for one in made),
            "hard_tasks": len(hard), "hard_rollouts": len(more),
            "hard_solved": sum(one.success for one in more),
        }  # fmt: skip

    def hard(self, tasks: Sequence[Task], made: Sequence[Episode]) -> list[Task]:
        """The tasks whose scored samples were right less often than `below`; one without a scored
        sample says nothing."""
        rates = {
            task.id: [one.success for one in made if one.task.id == task.id and one.score]
            for task in tasks
        }
        return [
            task
            for task in tasks
            if rates[task.id] and statistics.fmean(rates[task.id]) < self.below
        ]


@part
class Penalised:
    """1 for a right number, 0 for a wrong one, and -1 for a text with a loop, too many tokens or
    mixed scripts, however right it is. The thresholds are `Patterns`', for short answers."""

    ngram: int = 6
    times: int = 4
    longest: int | None = None
    foreign: float = 0.1
    garbled: float = 0.01

    @property
    def patterns(self) -> Patterns:
        """What counts as degenerate."""
        return Patterns(
            ngram=self.ngram, times=self.times, longest=self.longest, foreign=self.foreign,
            garbled=self.garbled,
        )  # fmt: skip

    async def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """One score per episode; its parts are `reward` and, for each sign found, 1."""
        graded = await Numeric().score(episodes)
        return [self._one(one, score) for one, score in zip(episodes, graded, strict=True)]

    def _one(self, episode: Episode, score: Score) -> Score:
        text, tokens = sampled_text(episode), sampled_ids(episode)
        signs = self.patterns.found(text, tokens)
        parts = {
            "reward": self.patterns.reward(score.value, text, tokens),
            **{sign: float(sign in signs) for sign in ("loop", "length", "charset")},
        }
        if not signs:
            return replace(score, source=SOURCE, parts=parts)
        said = f"the text is degenerate: {', '.join(signs)}"
        return Score(value=0.0, success=False, source=SOURCE, feedback=said, parts=parts)


def sampled_ids(episode: Episode) -> list[int]:
    """Every token that the model sampled, in order."""
    nodes = (node for each in trained(episode) for node in each.nodes if node.sampled)
    return [token for node in nodes for token in node.token_ids]


def replies(request: Request) -> str:
    """The scripted model: adds, slips now and then until it is trained, and sometimes loops."""
    own = [one for one in request.messages if one.name != "example" and one.role != "system"]
    numbers = [int(one) for one in re.findall(r"\d+", own[0].content)]
    seed = request.sampling.seed if request.sampling.temperature else 0
    drawn = zlib.crc32(f"{seed}/{own[0].content}".encode()) % 10
    total = sum(numbers) + (0 if request.policy or drawn < 4 else 1)
    if len(own) > 1:
        return f"Answer: {total}"
    if drawn == 9 and request.sampling.temperature:
        return "and then we add them up again " * 8
    return f"{' + '.join(map(str, numbers))} = {total}" + ("\nAnswer: " + str(total)) * (drawn < 8)
