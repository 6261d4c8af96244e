"""Search for a better instruction under a budget of rollouts.

Goes in: a seed instruction, tasks, operators, and `evaluate`, which rolls out an instruction and
returns scored episodes. Comes out: the best instruction and the whole population, rejected
proposals and their reasons included.

A round draws one parent, makes several proposals from different failures of it, tries them on a
minibatch on which the parent's scores are known, and races those that beat it over the remaining
tasks, halving the field at each rung (successive halving: Jamieson & Talwalkar 2016,
arXiv:1502.07943). An (instruction, task) pair is never paid twice. All random choices are made
outside of concurrent work, so the same seed and the same scores give the same search.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from typing import Protocol

from agentloop.evolution.mutate import Mutation, Operator, instruction_id, spread
from agentloop.evolution.population import Candidate, Choice, Population
from agentloop.ports import part
from agentloop.records import Episode, Instruction, Task, content_id, record


class Rollouts(Protocol):
    """Lent by the caller."""

    async def __call__(self, instruction: Instruction, tasks: Sequence[Task]) -> list[Episode]:
        """Scored episodes of `tasks` under `instruction`; those the infrastructure spoiled have
        no score, or are absent."""
        ...


@part
class EvolveSettings:
    """How much is tried. Defaults reach 80 % of a 24-rule world in about 400 rollouts."""

    rollouts: int = 600
    """The budget; the search never orders more."""
    dev: int = 40
    """Tasks (the first ones given) that candidates are compared on."""
    minibatch: int = 6
    proposals: int = 3
    """Made per round, all from one parent."""
    evidence: int = 12
    """Failures shown for one proposal, those with different feedback first."""
    keep: int = 6
    """Candidates that may be parents."""
    patience: int = 10
    """Rounds without a new best before the search ends."""
    choice: Choice = "pareto"
    temperature: float = 0.05


@record
class EvolveResult:
    """What the search found."""

    best: Instruction
    population: Population
    rollouts: int
    """Ordered in all."""
    stopped: str
    """Why it ended: perfect, budget, patience."""
    curve: tuple[tuple[int, float], ...] = ()
    """(rollouts so far, mean score of the best) after each round."""


async def evolve(
    seed: Instruction, *, evaluate: Rollouts, operators: Sequence[Operator],
    tasks: Sequence[Task], settings: EvolveSettings, rng: random.Random,
) -> EvolveResult:  # fmt: skip
    """The best instruction by mean score on the first `settings.dev` of `tasks`; the seed itself
    when nothing beats it. Operators take turns. Errors of `evaluate` and of operators are raised
    on (an operator reports a bad proposal as a rejected `Mutation`)."""
    search = _Search(seed, evaluate, tasks[: settings.dev], settings)
    await search.begin()
    stopped, stale, number = "budget", 0, 0
    while search.affordable():
        if search.perfect():
            stopped = "perfect"
            break
        if stale >= settings.patience:
            stopped = "patience"
            break
        before = search.population.best().id
        await search.round(number, operators, rng)
        stale = stale + 1 if search.population.best().id == before else 0
        number += 1
    return search.result(stopped)


class _Search:
    """The state of one search: the population, the episodes seen and the rollouts spent."""

    def __init__(
        self, seed: Instruction, evaluate: Rollouts, dev: Sequence[Task], settings: EvolveSettings
    ) -> None:
        self.evaluate, self.settings = evaluate, settings
        self.dev = {task.id: task for task in dev}
        self.seed = seed
        self.population = Population()
        self.seen: dict[str, dict[str, Episode]] = {}
        """Instruction id -> task id -> episode."""
        self.spent = 0
        self.curve: list[tuple[int, float]] = []

    async def begin(self) -> None:
        """Score the seed on the whole dev set (or on what the budget allows of it)."""
        seed_id = instruction_id(self.seed)
        self.population = self.population.add(Candidate(id=seed_id, instruction=self.seed))
        await self.measure([seed_id], list(self.dev)[: self.settings.rollouts])
        self.population = self.population.mark(seed_id, "active")
        self.note()

    def affordable(self) -> bool:
        """Whether one more proposal could at least be tried."""
        return bool(self.dev) and self.spent + self.settings.minibatch <= self.settings.rollouts

    def perfect(self) -> bool:
        """Whether the best succeeds on every dev task with the highest score."""
        best = self.population.best()
        episodes = self.seen[best.id].values()
        return len(best.scores) == len(self.dev) and all(
            one.success and one.score is not None and one.score.value >= 1.0 for one in episodes
        )

    async def round(self, number: int, operators: Sequence[Operator], rng: random.Random) -> None:
        """Draw a parent, propose, filter on a minibatch, race."""
        settings = self.settings
        parent = self.population.draw(rng, choice=settings.choice, temperature=settings.temperature)
        children = self.admit(parent, await self.propose(parent, number, operators, rng))
        minibatch = self.minibatch(parent, rng)
        tried = await self.measure(children, minibatch)
        better = [one for one in tried if self.beats(one, parent, minibatch)]
        self.drop(set(tried) - set(better), "not better than its parent on the minibatch")
        rest = [task for task in self.dev if task not in minibatch]
        rng.shuffle(rest)
        await self.race(better, parent, minibatch, rest)
        self.population = self.population.prune(settings.keep)
        self.note()

    async def propose(
        self, parent: Candidate, number: int, operators: Sequence[Operator], rng: random.Random
    ) -> list[Mutation]:
        """Proposals, each from its own draw of the parent's failures, made concurrently."""
        episodes = list(self.seen[parent.id].values())
        calls = []
        for place in range(self.settings.proposals):
            operator = operators[(number * self.settings.proposals + place) % len(operators)]
            drawn = rng.sample(episodes, len(episodes))
            failures = spread([one for one in drawn if not one.success])
            successes = [one for one in drawn if one.success]
            shown = [*failures[: self.settings.evidence], *successes]
            key = content_id("evolve", parent.id, number, place)
            calls.append(operator(parent.instruction, shown, key=key))
        return [made for batch in await asyncio.gather(*calls) for made in batch]

    def admit(self, parent: Candidate, mutations: Iterable[Mutation]) -> list[str]:
        """Put proposals into the population; returns the ids of those to be tried. A text that
        came before and was dropped by an early comparison gets another chance, at the price of
        the tasks that it was not scored on."""
        known = {
            one.instruction.text: one
            for one in self.population.candidates
            if not one.id.startswith("rejected-")
        }
        children: list[str] = []
        for place, made in enumerate(mutations):
            child, reason = made.instruction, made.reason
            if child is None:
                child = Instruction(text="", operator=made.operator, parents=(parent.id,))
                child_id = content_id("rejected", parent.id, len(self.population.candidates), place)
            elif child.text in known:
                again = known[child.text]
                if again.status == "pruned" and len(again.scores) < len(self.dev):
                    children.append(again.id)
                continue
            else:
                child_id = instruction_id(child)
                known[child.text] = Candidate(id=child_id, instruction=child)
                children.append(child_id)
            self.population = self.population.add(Candidate(id=child_id, instruction=child))
            if reason:
                self.population = self.population.mark(child_id, "pruned", reason)
        return list(dict.fromkeys(children))

    def minibatch(self, parent: Candidate, rng: random.Random) -> list[str]:
        """Tasks on which the parent was scored: half of them failures, where a better child
        shows, and half successes, where a worse one does."""
        seen = self.seen[parent.id]
        failed = [task for task, episode in seen.items() if not episode.success]
        solved = [task for task, episode in seen.items() if episode.success]
        size = self.settings.minibatch
        n_failed = min(len(failed), max(size // 2, size - len(solved)))
        n_solved = min(len(solved), size - n_failed)
        return rng.sample(failed, n_failed) + rng.sample(solved, n_solved)

    def beats(self, child_id: str, parent: Candidate, tasks: Iterable[str]) -> bool:
        """More points than the parent on the tasks that both were scored on, or as many with a
        shorter text."""
        child = self.population[child_id]
        common = [task for task in tasks if task in child.scores and task in parent.scores]
        mine = sum(child.scores[task] for task in common)
        theirs = sum(parent.scores[task] for task in common)
        if abs(mine - theirs) < 1e-9:
            shorter = len(child.instruction.text) < len(parent.instruction.text)
            return shorter and bool(common)
        return mine > theirs

    async def race(
        self, field: list[str], parent: Candidate, done: list[str], rest: list[str]
    ) -> None:
        """Successive halving over `rest`; the one that is left at its end becomes active."""
        done, step = list(done), self.settings.minibatch
        while field and rest:
            rung, rest = rest[:step], rest[step:]
            step *= 2
            ahead = [one for one in field if self.beats(one, parent, done)]
            self.drop(set(field) - set(ahead), f"fell behind its parent within {len(done)} tasks")
            ahead.sort(key=lambda one: self.population[one].mean(done), reverse=True)
            field = ahead[: max(1, len(ahead) // 2)]
            self.drop(set(ahead) - set(field), f"behind others after {len(done)} tasks")
            done += rung
            field = await self.measure(field, done)
        for one in field:
            if self.beats(one, parent, done):
                self.population = self.population.mark(one, "active")
            else:
                self.drop([one], "not better than its parent on the dev tasks")

    async def measure(self, candidates: Sequence[str], tasks: Sequence[str]) -> list[str]:
        """Score `candidates` on those of `tasks` that are new to them, all at once. Those that
        the budget does not reach are pruned; returns the others."""
        orders: dict[str, list[Task]] = {}
        for one in candidates:
            due = [self.dev[task] for task in tasks if task not in self.seen.get(one, {})]
            if self.spent + len(due) > self.settings.rollouts:
                self.drop([one], "the budget of rollouts is spent")
                continue
            self.spent += len(due)
            orders[one] = due
        batches = await asyncio.gather(
            *(self.evaluate(self.population[one].instruction, due) for one, due in orders.items())
        )
        for one, batch in zip(orders, batches, strict=True):
            scored = {each.task.id: each for each in batch if each.score is not None}
            self.seen.setdefault(one, {}).update(scored)
            values = {task: each.score.value for task, each in scored.items() if each.score}
            self.population = self.population.score(one, values)
        return list(orders)

    def drop(self, candidates: Iterable[str], reason: str) -> None:
        for one in sorted(candidates):
            self.population = self.population.mark(one, "pruned", reason)

    def note(self) -> None:
        self.curve.append((self.spent, self.population.best().mean()))

    def result(self, stopped: str) -> EvolveResult:
        return EvolveResult(
            best=self.population.best().instruction, population=self.population,
            rollouts=self.spent, stopped=stopped, curve=tuple(self.curve),
        )  # fmt: skip
