"""The instructions lane: a small population evolved from what the log shows.

Goes in: the champion's instruction and this cycle's successes. Comes out: a bundle with the best
instruction found on training tasks. Every proposal, rejected ones with their reasons included,
goes into the log.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from agentloop.evolution.evolve import EvolveResult, EvolveSettings, evolve
from agentloop.evolution.mutate import Operator, add_examples, chain, instruction_id, reflect
from agentloop.lanes.bench import Bench, Order
from agentloop.ports import Model, part
from agentloop.records import (
    Completion,
    Episode,
    Instruction,
    Proposal,
    Request,
    Sampling,
    Task,
)  # fmt: skip
from agentloop.store.query import Query
from agentloop.trajectories.codec import to_json


@dataclass(frozen=True)
class Keyed:
    """A model whose calls are named after the run as well: the same question in another run (of
    another model, perhaps) is another call."""

    inner: Model
    run: str

    async def complete(self, request: Request) -> Completion:
        """As `ports.Model`."""
        return await self.inner.complete(replace(request, key=f"{self.run}/{request.key}"))


@part
class EvolveInstruction:
    """Population search; see `evolution.evolve.EvolveSettings` for the numbers."""

    operators: tuple[Literal["example", "reflect"], ...] = ("reflect", "example")
    rollouts: int = 600
    dev: int = 40
    minibatch: int = 6
    proposals: int = 3
    patience: int = 10
    lessons: int = 4
    """Reflections in a row that make one proposal."""
    examples: int = 4
    """Worked examples that one proposal adds."""
    max_tokens: int = 1024
    """Of a reflection's reply."""
    temperature: float = 0.7
    """Of a reflection."""

    async def propose(self, bench: Bench) -> Proposal:
        """A bundle with a better instruction, or the reason why there is none."""
        champion = bench.bundle(bench.champion)
        seed = bench.instruction(champion)

        async def evaluate(instruction: Instruction, tasks: list[Task]) -> list[Episode]:
            bundle = replace(champion, instruction=bench.archive.put(instruction))
            return await bench.attempt(
                tasks, bundle, Order(purpose="train", subject="instructions")
            )

        result = await evolve(
            seed, evaluate=evaluate, operators=self.bound(bench),  # type: ignore[arg-type]
            tasks=bench.tasks.draw(self.dev, split="train", seed=bench.seed + 7919),
            settings=EvolveSettings(
                rollouts=self.rollouts, dev=self.dev, minibatch=self.minibatch,
                proposals=self.proposals, patience=self.patience,
            ),
            rng=random.Random(bench.seed),
        )  # fmt: skip
        self.log(bench, result)
        if instruction_id(result.best) == instruction_id(seed):
            reason = f"no proposal beat the champion in {result.rollouts} rollouts"
            return Proposal(lane="instructions", state="skipped", reason=reason)
        best = bench.archive.put(result.best)
        return Proposal(
            lane="instructions", state="proposed", bundle=replace(champion, instruction=best),
            candidate=best, reason=f"best of {len(result.population.candidates)} after "
            f"{result.rollouts} rollouts ({result.stopped})",
        )  # fmt: skip

    def bound(self, bench: Bench) -> list[Operator]:
        """The operators with what they are lent; sampling of reflections is seeded."""
        sampling = Sampling(
            temperature=self.temperature, max_tokens=self.max_tokens, seed=bench.seed
        )
        log = bench.archive.episodes(Query(run=bench.run, purpose="collect", success=True))
        reflecting = partial(reflect, model=Keyed(bench.model, bench.run), sampling=sampling)
        made: dict[str, Operator] = {
            "reflect": partial(chain, operator=reflecting, times=self.lessons),
            "example": partial(add_examples, embedder=bench.embedder, k=self.examples, log=log),
        }
        return [made[name] for name in self.operators]

    def log(self, bench: Bench, result: EvolveResult) -> None:
        """The whole population as one event, and each instruction as an artifact."""
        for candidate in result.population.candidates:
            if candidate.instruction.text:
                bench.archive.put(candidate.instruction)
        bench.archive.add_event("population", bench.run, bench.workflow, {
            "stopped": result.stopped, "rollouts": result.rollouts,
            "candidates": [to_json(one) for one in result.population.candidates],
        })  # fmt: skip
