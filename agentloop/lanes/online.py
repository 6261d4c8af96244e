"""Online learning, as one part: roll out with the newest policy, learn from that, again and again.

Goes in: training tasks. Comes out: a bundle with the last round's policy, or the reason why there
is none. Each round's adapter is a version of its own and is served under its own name, so every row
says which weights sampled it and its ratio begins at 1. A round that was finished is read back from
the log; of one that was killed the finished episodes are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from agentloop.datasets.credit import Credit, GroupCredit
from agentloop.datasets.filters import BASE, Filters
from agentloop.datasets.makers import RLRows
from agentloop.datasets.recipe import Recipe
from agentloop.lanes.bench import Bench, Order, stream
from agentloop.lanes.nested import A_CREDIT
from agentloop.lanes.phase import (
    API,
    Lesson,
    build,
    check_settings,
    freeze,
    guard_settings,
    hack_rate,
    learn,
    lent,
    lineage,
    nothing_to_learn,
    skip,
)
from agentloop.ports import part
from agentloop.records import Bundle, Episode, Json, Proposal, content_id, record
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.training.guards import Guards
from agentloop.trajectories.codec import from_json, to_json

_STEP = "online/"


@record
class Round:
    """What a round began with, measured and left."""

    number: int
    sampled_by: str | None
    """The version that made its rollouts; `None` is the base model."""
    policy: str | None
    """The version that it left; the same when there was nothing to learn."""
    optimizer: str = ""
    """Directory of the optimizer's state."""
    dataset: str = ""
    reason: str = ""
    """Why nothing was learned."""
    figures: dict[str, float]
    """Of its rollouts: `rollouts`, `solved`, `reward`, `length` (sampled tokens), `hack_rate`; and
    the trainer's."""


@part
class Online:
    """`rounds` rounds of `samples` samples of each of `tasks` tasks, then one or more steps."""

    rounds: Annotated[int, Field(ge=1, le=10_000)] = 4
    tasks: Annotated[int, Field(ge=1, le=100_000)] = 8
    samples: Annotated[int, Field(ge=2, le=10_000)] = 8
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    select: Filters = Filters(mixed_groups=True)
    """Of a round's rollouts; `purposes` and `policies` are the round's own."""
    credit: Annotated[Any, A_CREDIT] = GroupCredit()
    method: str = "agentloop.training.session:train"
    settings: dict[str, Json] = Field(default_factory=dict)
    """The method's, for one round: with `epochs` 1 and a `batch_size` that holds all rows, a round
    is one step."""

    @model_validator(mode="after")
    def _fits(self) -> Online:
        """Wrong settings are told before anything is written."""
        check_settings(self.method, self.settings)
        return self

    @property
    def rollouts(self) -> int:
        """At most so many, for the plan."""
        return self.rounds * self.tasks * self.samples

    def plan(self, number: int) -> tuple[Credit, dict[str, Json]]:
        """The credit and the settings of round `number`, from 1. A part of a workflow's own may
        change them from round to round."""
        return self.credit, self.settings

    async def propose(self, bench: Bench) -> Proposal:
        """A bundle with the last policy, or the reason why there is none. Raises `TrainingError`
        when a guard trips, the data cannot be learned from or the trainer failed; rollouts and
        datasets stay."""
        if bench.base_model is None or bench.trainer is None:
            return skip(API)
        champion = bench.bundle(bench.champion)
        guards = Guards(planned=self.rounds)
        start = champion.policies.get("agent")
        rounds = [Round(number=0, sampled_by=start, policy=start, figures={})]
        for number in range(1, self.rounds + 1):
            made = await self._once(bench, number, rounds[-1], guards)
            before = rounds[-1].policy
            if bench.server is not None and before is not None and before != made.policy:
                await bench.server.unload_policy(before)
            rounds.append(made)
            note = f"{made.figures['solved']:.0%} right"
            bench.progress("online", number, self.rounds, note)
        updates = [one for one in rounds[1:] if not one.reason]
        last = rounds[-1].policy
        if not updates or last is None or last == start:
            why = rounds[-1].reason or "the policy is the one that it started from"
            return skip(f"nothing was learned in {self.rounds} rounds: {why}")
        first, end = (rounds[at].figures["solved"] for at in (1, -1))
        return Proposal(
            lane="policy", state="proposed", bundle=with_policy(champion, last), candidate=last,
            reason=f"{len(updates)} updates in {self.rounds} rounds; {first:.0%} of the first "
            f"round's samples were right and {end:.0%} of the last's",
        )  # fmt: skip

    async def _once(self, bench: Bench, number: int, before: Round, guards: Guards) -> Round:
        """A round, read back when it was finished; the guards see its figures either way."""
        credit, settings = self.plan(number)
        guards.settings = guard_settings(settings)
        recipe = Recipe(
            select=replace(
                self.select, purposes=("train",), policies=(before.policy or BASE,)
            ),
            credit=credit, rows=RLRows(),
        )  # fmt: skip
        step = _STEP + content_id(
            "online", recipe.spec(), settings, self.method, self.tasks, self.samples,
            self.temperature, bench.champion, number,
        )  # fmt: skip
        known = bench.archive.step(bench.run, step)
        if known is not None:
            made = from_json(Round, known)
            watch(guards, number, made.figures)
            return made
        episodes = await self._roll_out(bench, number, before.policy)
        figures = measured(episodes) | {"hack_rate": hack_rate(episodes, self.select.hacks)}
        watch(guards, number, figures)
        made = Round(
            number=number, sampled_by=before.policy, policy=before.policy,
            optimizer=before.optimizer, figures=figures,
        )  # fmt: skip
        made, metrics = await self._learn(bench, recipe, episodes, (made, settings))
        watch(guards, number, metrics)
        made = replace(made, figures=metrics | figures)
        bench.archive.add_step(bench.run, step, to_json(made))
        return made

    async def _roll_out(self, bench: Bench, number: int, policy: str | None) -> list[Episode]:
        seed = stream(bench.seed, "online", number)
        tasks = bench.tasks.draw(self.tasks, split="train", seed=seed)
        bundle = with_policy(bench.bundle(bench.champion), policy)
        order = Order(
            purpose="train", subject=f"online {number}", samples=self.samples,
            temperature=self.temperature,
        )  # fmt: skip
        # a task that comes again in a later round is not sampled with the same random numbers
        return await replace(bench, seed=seed).attempt(tasks, bundle, order)

    async def _learn(
        self, bench: Bench, recipe: Recipe, episodes: Sequence[Episode],
        begun: tuple[Round, dict[str, Json]],
    ) -> tuple[Round, dict[str, float]]:  # fmt: skip
        """The round with what was learned and the trainer's metrics, or with the reason why nothing
        was learned."""
        made, settings = begun
        lesson = Lesson(self.method, settings, "agent", made.policy)
        versions = lineage(bench, made.policy)  # those that this phase made as well
        given = lent(bench, episodes, recipe.select, versions=versions)
        built = build(recipe, episodes, given)
        if reason := nothing_to_learn(built, len(episodes), 1):
            return replace(made, reason=reason), {}
        dataset = freeze(bench, recipe, built, lesson)
        name = bench.archive.put(dataset)
        if made.optimizer:
            lesson = replace(lesson, settings={**settings, "optimizer": made.optimizer})
        learned = await learn(bench, dataset, lesson)
        state = Path(f"{learned.job}.optimizer")
        left = str(state) if state.is_dir() else made.optimizer
        made = replace(made, policy=learned.policy, dataset=name, optimizer=left)
        return made, learned.metrics


def rounds_of(archive: Archive, run: str) -> list[Round]:
    """The finished rounds of a cycle, in order: what curves are drawn from."""
    steps = archive.read(Query(kinds=("step",), prefix=f"{run}/{_STEP}"))
    return sorted((from_json(Round, one.body) for one in steps), key=lambda one: one.number)


def with_policy(bundle: Bundle, policy: str | None) -> Bundle:
    """The bundle with this agent; `None` is the base model."""
    others = {role: name for role, name in bundle.policies.items() if role != "agent"}
    return replace(bundle, policies=others | ({"agent": policy} if policy else {}))


def measured(episodes: Sequence[Episode]) -> dict[str, float]:
    """How a round's rollouts went; those without a score count in `rollouts` alone."""
    scored = [one for one in episodes if one.score is not None]
    many = max(1, len(scored))
    return {
        "rollouts": float(len(episodes)),
        "solved": sum(one.success for one in scored) / many,
        "reward": math.fsum(one.score.value for one in scored if one.score) / many,
        "length": sum(sum(_lengths(one)) for one in scored) / many,
    }


def watch(guards: Guards, number: int, figures: Mapping[str, float]) -> None:
    """Show the guards what drifts from round to round. Raises `TrainingError`."""
    names = {
        "length": "length", "hack_rate": "hack_rate", "entropy_at_start": "entropy",
        "last_kl": "kl",
    }  # fmt: skip
    guards.watch(number, {said: figures[one] for one, said in names.items() if one in figures})


def _lengths(episode: Episode) -> Iterator[int]:
    for trajectory in episode.trajectories:
        for node in trajectory.nodes:
            if node.sampled:
                yield len(node.token_ids)
