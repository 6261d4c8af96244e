"""The search, on a world where an instruction is a list of rules and feedback names one."""

from __future__ import annotations

import asyncio
import random
import re
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest

from agentloop.evolution.evolve import EvolveResult, EvolveSettings, evolve
from agentloop.evolution.mutate import Mutation, chain, instruction_id
from agentloop.records import Episode, Instruction, Score, Task

RULES = 24


def tasks_of(seed: int, n: int) -> list[Task]:
    """Each task needs three rules."""
    rng = random.Random(seed)
    return [
        Task(id=f"{seed}-{i}", prompt=f"task {i}", expected=rng.sample(range(RULES), 3))
        for i in range(n)
    ]


def held(instruction: Instruction) -> set[int]:
    return {int(found) for found in re.findall(r"R(\d+)", instruction.text)}


def missing(instruction: Instruction, task: Task) -> list[int]:
    return [rule for rule in task.expected if rule not in held(instruction)]  # type: ignore[union-attr]


class World:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def evaluate(self, instruction: Instruction, tasks: Sequence[Task]) -> list[Episode]:
        episodes = []
        for task in tasks:
            self.asked.append((instruction.text, task.id))
            lacks = missing(instruction, task)
            score = Score(
                value=1 - len(lacks) / 3,
                success=not lacks,
                source="test",
                feedback=f"needs rule R{lacks[0]}" if lacks else "",
            )
            episodes.append(
                Episode(
                    id=f"{len(self.asked)}",
                    task=task,
                    bundle="b",
                    purpose="train",
                    run="r",
                    seed=0,
                    score=score,
                )
            )
        return episodes


def reflector(seed: int):  # type: ignore[no-untyped-def]
    """Adds one (30 %: two) of the reported rules and forgets each held one with p = 0.03."""
    rng = random.Random(seed)

    async def operator(
        parent: Instruction, episodes: Sequence[Episode], *, key: str
    ) -> list[Mutation]:
        feedback = " ".join(one.score.feedback for one in episodes if one.score)
        reported = sorted({int(rule) for rule in re.findall(r"R(\d+)", feedback)})
        rng.shuffle(reported)
        kept = {rule for rule in held(parent) if rng.random() >= 0.03}
        kept |= set(reported[: 2 if rng.random() < 0.3 else 1])
        text = " ".join(f"R{rule}" for rule in sorted(kept))
        child = Instruction(text=text, operator="reflect", parents=(instruction_id(parent),))
        return [Mutation(operator="reflect", instruction=child)]

    return operator


def search(seed: int, world: World, **settings: object) -> EvolveResult:
    return asyncio.run(
        evolve(
            Instruction(text=""),
            evaluate=world.evaluate,
            operators=[partial(chain, operator=reflector(seed), times=3)],
            tasks=tasks_of(1000 + seed, 40),
            settings=EvolveSettings(rollouts=1000, **settings),  # type: ignore[arg-type]
            rng=random.Random(seed),
        )
    )


def heldout_rate(instruction: Instruction) -> float:
    tasks = tasks_of(7, 200)
    return sum(not missing(instruction, task) for task in tasks) / len(tasks)


def rollouts_to(result: EvolveResult, rate: float) -> int:
    """Rollouts spent when the best first was one that passes `rate` of the held-out tasks."""
    passing = {
        round(one.mean(), 9)
        for one in result.population.candidates
        if len(one.scores) == 40 and heldout_rate(one.instruction) >= rate
    }
    return next(spent for spent, mean in result.curve if round(mean, 9) in passing)


@pytest.mark.parametrize("seed", range(5))
def test_rule_world_is_learned_within_the_budget(seed: int) -> None:
    world = World()
    result = search(seed, world)
    assert heldout_rate(Instruction(text="")) == 0
    assert heldout_rate(result.best) >= 0.8
    assert result.rollouts <= 1000


def test_median_rollouts_to_80_percent() -> None:
    assert statistics.median(rollouts_to(search(s, World()), 0.8) for s in range(5)) <= 600


def test_no_pair_is_paid_twice_and_every_rollout_is_counted() -> None:
    world = World()
    result = search(0, world)
    assert len(world.asked) == len(set(world.asked)) == result.rollouts


def test_the_same_seed_gives_the_same_search() -> None:
    assert search(3, World()) == search(3, World())


def test_the_budget_is_a_hard_limit() -> None:
    world = World()
    tasks = tasks_of(1, 40)
    for budget in (0, 5, 40, 43, 77):
        result = asyncio.run(
            evolve(
                Instruction(text=""), evaluate=world.evaluate, operators=[reflector(0)],
                tasks=tasks, settings=EvolveSettings(rollouts=budget), rng=random.Random(0),
            )
        )  # fmt: skip
        assert result.rollouts <= budget
        assert result.stopped == "budget"


def test_everything_rejected_is_kept_with_its_reason_and_the_seed_stays() -> None:
    async def useless(
        parent: Instruction, episodes: Sequence[Episode], *, key: str
    ) -> list[Mutation]:
        worse = Instruction(text=f"nothing {key}", operator="reflect")
        rejected = Mutation(operator="reflect", reason="no")
        return [rejected, Mutation(operator="reflect", instruction=worse)]

    seed = Instruction(text="R1 R2")
    result = asyncio.run(
        evolve(
            seed, evaluate=World().evaluate, operators=[useless], tasks=tasks_of(1, 40),
            settings=EvolveSettings(patience=2), rng=random.Random(0),
        )
    )  # fmt: skip
    assert (result.best, result.stopped) == (seed, "patience")
    others = [one for one in result.population.candidates if one.instruction != seed]
    assert len(others) == 2 * 2 * 3
    assert all(one.status == "pruned" and one.reason for one in others)
    assert {one.reason for one in others} == {"no", "not better than its parent on the minibatch"}


def test_a_perfect_seed_costs_one_sweep() -> None:
    seed = Instruction(text=" ".join(f"R{rule}" for rule in range(RULES)))
    result = asyncio.run(
        evolve(
            seed, evaluate=World().evaluate, operators=[reflector(0)], tasks=tasks_of(1, 60),
            settings=EvolveSettings(dev=20), rng=random.Random(0),
        )
    )  # fmt: skip
    assert (result.best, result.stopped, result.rollouts) == (seed, "perfect", 20)


def test_spoiled_rollouts_are_no_zeros() -> None:
    """An episode without a score says nothing about the instruction, and is shown to nobody."""
    world = World()
    learn = partial(chain, operator=reflector(1), times=3)

    async def strict(
        parent: Instruction, episodes: Sequence[Episode], *, key: str
    ) -> list[Mutation]:
        assert all(one.score is not None for one in episodes)
        return await learn(parent, episodes, key=key)

    async def flaky(instruction: Instruction, tasks: Sequence[Task]) -> list[Episode]:
        return [
            replace(one, score=None) if one.task.id.endswith(("3", "8")) else one
            for one in await world.evaluate(instruction, tasks)
        ]

    result = asyncio.run(
        evolve(
            Instruction(text=""), evaluate=flaky, operators=[strict],
            tasks=tasks_of(1, 40), settings=EvolveSettings(rollouts=1000), rng=random.Random(1),
        )
    )  # fmt: skip
    best = result.population.best()
    assert best.mean() > 0.9
    assert len(best.scores) == 32
