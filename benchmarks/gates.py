"""The gate and the decision over lanes against chance: how often they promote what they should not,
and how soon they find what they should.

The gate, the judge and the rule of promotion are the shipped ones; only rollouts are simulated (a
bench whose bundles have a known rate of success). Each figure stands beside its bar. The fixed
sample size that the gate's is compared with is that of a paired test of two proportions (Connor,
"Sample size for testing differences in proportions for the paired-sample design", Biometrics 43
(1987)).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np

from agentloop.cycle import record
from agentloop.gates.sequential import Sequential
from agentloop.lanes.decide import Decision, Judge
from agentloop.lanes.heldout import HoldOut, split, use_of
from agentloop.records import Bundle, Episode, Proposal, Score, Task, Usage, Verdict, artifact_id
from agentloop.store.artifacts import Pointer
from agentloop.trajectories.codec import to_json
from benchmarks.harness import Check, Result, main

LANES = ("instructions", "skills", "policy")
RATE = 0.4
"""Of the champion; a pair of independent rollouts at it and 0.1 more differs half of the time."""
MIN_EFFECT, POWER, ALPHA = 0.1, 0.9, 0.05
FIRST = artifact_id(Bundle(instruction="first"))
Make = Callable[[Task, bool], Episode]


def fixed_n(effect: float, *, discordant: float, alpha: float, power: float) -> int:
    """Pairs that a one-sided paired test of a fixed size needs to find `effect` when a share
    `discordant` of the pairs differs (Connor 1987, formula 3)."""
    a, b = (NormalDist().inv_cdf(one) for one in (1 - alpha, power))
    spread = a * math.sqrt(discordant) + b * math.sqrt(discordant - effect**2)
    return math.ceil((spread / effect) ** 2)


def at_most(n: int, rate: float) -> int:
    """The 97.5 % limit of how often something of this rate happens in `n` trials."""
    total = 0.0
    for k in range(n + 1):
        total += math.comb(n, k) * rate**k * (1 - rate) ** (n - k)
        if total >= 0.975:
            return k
    return n


def plain(task: Task, success: bool, prompt_tokens: int = 100) -> Episode:
    """An episode with nothing but its outcome."""
    return Episode(
        id=task.id, task=task, bundle="", purpose="eval", run="r", seed=0,
        score=Score(value=float(success), success=success, source="s"),
        usage=Usage(prompt_tokens=prompt_tokens, completion_tokens=50),
    )  # fmt: skip


def lean(task: Task, success: bool) -> Episode:
    """One that took a third fewer tokens."""
    return plain(task, success, 50)


@dataclass
class World:
    """Stands for the bench and its archive. Whether a bundle solves a task is drawn once."""

    tasks: Sequence[Task]
    rng: np.random.Generator
    gain: float = 0.0
    """What every challenger adds to the champion's rate."""
    make: dict[str, Make] = field(default_factory=dict)
    """How the episodes of a bundle look; `plain` ones unless named."""
    lean: bool = False
    """Whether every challenger takes fewer tokens than the champion,"""
    same: bool = False
    """and solves just what it solves."""
    champion: str = FIRST
    bundles: dict[str, Bundle] = field(default_factory=dict)
    verdicts: list[tuple[str, Verdict]] = field(default_factory=list)
    drawn: dict[str, np.ndarray] = field(default_factory=dict)
    kept: dict[tuple[str, bool], Episode] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.archive = self
        self.at = {task.id: number for number, task in enumerate(self.tasks)}
        self.bundles[FIRST] = Bundle(instruction="first")

    def put(self, bundle: Bundle) -> str:
        """As an archive."""
        name = artifact_id(bundle)
        self.bundles[name] = bundle
        return name

    def bundle(self, name: str) -> Bundle:
        """As a bench."""
        return self.bundles[name]

    async def attempt(self, tasks: Sequence[Task], bundle: Bundle, order: object) -> list[Episode]:
        """As a bench."""
        name = artifact_id(bundle)
        new = name != self.champion
        if name not in self.drawn:
            rate = RATE + self.gain if new else RATE
            hits = self.drawn.get(self.champion) if new and self.same else None
            self.drawn[name] = self.rng.random(len(self.tasks)) < rate if hits is None else hits
        hits = self.drawn[name]
        make = lean if new and self.lean else self.make.get(name)
        return [
            make(task, bool(hits[self.at[task.id]]))
            if make
            else self._plain(task, bool(hits[self.at[task.id]]))
            for task in tasks
        ]

    def _plain(self, task: Task, success: bool) -> Episode:
        key = (task.id, success)
        if key not in self.kept:
            self.kept[key] = plain(task, success)
        return self.kept[key]

    def add_verdict(self, verdict: Verdict, cycle: str, **more: object) -> None:
        """As an archive."""
        self.verdicts.append((cycle, verdict))

    def read(self, query: object) -> list[SimpleNamespace]:
        """As an archive: the verdicts that decided."""
        return [
            SimpleNamespace(key=f"{cycle}#v", body=to_json(verdict))
            for cycle, verdict in self.verdicts
            if verdict.final
        ]

    def alias(self, name: str) -> SimpleNamespace:
        """As an archive."""
        return SimpleNamespace(bundle=self.champion)

    def alias_history(self, name: str) -> list[Pointer]:
        """As an archive: no cycle is resumed here."""
        return []

    def point(self, alias: str, bundle: str, **more: object) -> None:
        """As an archive: a promotion."""
        self.champion = bundle


def proposals(world: World, cycle: str, lanes: Sequence[str] = LANES) -> list[Proposal]:
    """One changed bundle per lane."""
    old = world.bundles[world.champion]
    changes: dict[str, dict[str, Any]] = {
        "instructions": {"instruction": cycle}, "skills": {"skills": (cycle,)},
        "policy": {"policies": {"agent": cycle}},
    }  # fmt: skip
    return [
        Proposal(lane=lane, state="proposed", bundle=replace(old, **changes[lane]))  # type: ignore[arg-type]
        for lane in lanes
    ]


def cycle(
    world: World, hold_out: HoldOut, made: Sequence[Proposal], *, name: str = "cycle",
    probes: Sequence[Task] = (), gate: Sequential = Sequential(),
) -> tuple[Decision, bool]:  # fmt: skip
    """Judge and record, as a cycle does: the decision, and whether it was promoted."""
    before = world.champion
    judge = Judge(world, gate, hold_out, probes)  # type: ignore[arg-type]
    decision = asyncio.run(judge.decide(made))
    kit: Any = SimpleNamespace(
        name="w", alias="w/champion", promoted="w/champion", cycle_id=name,
        bench=SimpleNamespace(archive=world, champion=before),
    )  # fmt: skip
    record(kit, decision, ("cycle/w", 1))
    return decision, world.champion != before


def tasks(n: int, name: str = "t") -> list[Task]:
    """`n` tasks that differ in nothing but their ids."""
    return [Task(id=f"{name}{at}", prompt="?", expected=at) for at in range(n)]


def fresh(
    cycles: int, *, lanes: Sequence[str] = LANES, n: int = 256, seed: int = 0, **world: Any
) -> list[tuple[Decision, bool]]:
    """Cycles on tasks that are new each time, in a `World` with these fields."""
    some = tasks(64 + n)
    hold_out = HoldOut(tuple(some[:64]), tuple(some[64:]))
    found = []
    for number in range(cycles):
        one = World(some, np.random.default_rng((seed, number)), **world)
        found.append(cycle(one, hold_out, proposals(one, "new", lanes)))
    return found


class Finite:
    """A source with the same held-out tasks for ever."""

    def __init__(self, some: Sequence[Task]) -> None:
        self.some = list(some)

    def draw(self, n: int, *, split: str, seed: int) -> list[Task]:
        """As `Tasks`."""
        order = np.random.default_rng(seed).permutation(len(self.some))
        return [self.some[at] for at in order[:n]]

    def learn(self, episodes: Sequence[Episode]) -> None:
        """Nothing."""


def chain(cycles: int, *, seed: int, lanes: Sequence[str] = LANES, size: int = 128) -> int:
    """Promotions in so many null cycles on one finite hold-out."""
    some = tasks(size)
    world, source, promoted = World(some, np.random.default_rng(seed)), Finite(some), 0
    for number in range(cycles):
        name = f"cycle-{number}"
        hold_out = split(source, name, n=size, lanes=size // 4)  # type: ignore[arg-type]
        ids = [task.id for task in hold_out.final]
        use = use_of(world, "w", name, ids)  # type: ignore[arg-type]
        hold_out = HoldOut(hold_out.lanes, hold_out.final, use)
        _, moved = cycle(world, hold_out, proposals(world, name, lanes), name=name)
        promoted += moved
    return promoted


def finals(found: Sequence[tuple[Decision, bool]]) -> list[Verdict]:
    """The verdicts that decided."""
    return [decision.final for decision, _ in found if decision.final is not None]


def measure(quick: bool) -> Result:
    """Null cycles, worse challengers, chains on one hold-out, and samples by true effect."""
    result, many = Result(), 100 if quick else 1000
    null = fresh(many)
    promoted = sum(moved for _, moved in null)
    worse = fresh(many, gain=-0.05, lanes=["instructions"], seed=1)
    harmed = sum(moved for _, moved in worse)
    saving = fresh(many, gain=-0.05, lean=True, lanes=["instructions"], seed=3)
    saved = sum(moved for _, moved in saving)
    alike = fresh(many // 5, lean=True, same=True, lanes=["instructions"], seed=4)
    chains = 10 if quick else 200
    moved = sum(chain(50, seed=seed, lanes=LANES[:1]) > 0 for seed in range(chains))
    for what, n, promotions, kept in (
        ("null cycles of three lanes", many, promoted, null),
        ("cycles with a challenger 5 points worse", many, harmed, worse),
        ("the same, and a third cheaper", many, saved, saving),
        ("a third cheaper, solving the same", len(alike), sum(one for _, one in alike), alike),
    ):
        pairs = float(np.mean([verdict.n for verdict in finals(kept)]))
        result.rows.append({"what": what, "n": n, "promoted": promotions, "mean_pairs": pairs})
    result.rows.append(
        {"what": "chains of 50 null cycles on one hold-out", "n": chains, "promoted": moved}
    )
    result.checks += [
        Check(f"promoted of {many} null cycles", promoted, at_most(many, ALPHA), at_most=True),
        Check(f"promoted of {many} worse challengers", harmed, many * 5 // 1000, at_most=True),
        Check(f"promoted of {many} worse and cheaper", saved, at_most(many, ALPHA), at_most=True),
        Check(f"chains with a promotion, of {chains}", moved, at_most(chains, ALPHA), at_most=True),
    ]
    samples(result, 20 if quick else 200)
    return result


def samples(result: Result, cycles: int) -> None:
    """Pairs until the verdict beside the fixed number, for effects from the least on."""
    discordant = RATE * (1 - RATE - MIN_EFFECT) + (1 - RATE) * (RATE + MIN_EFFECT)
    fixed = fixed_n(MIN_EFFECT, discordant=discordant, alpha=ALPHA, power=POWER)
    for gain in (0.1, 0.2, 0.3, 0.5):
        found = fresh(cycles, gain=gain, lanes=["instructions"], n=fixed, seed=2)
        mean = float(np.mean([verdict.n for verdict in finals(found)]))
        share = sum(moved for _, moved in found) / cycles
        result.rows.append(
            {"what": f"a true effect of {gain}", "n": cycles, "promoted": share,
             "mean_pairs": round(mean, 1), "fixed_pairs": fixed}
        )  # fmt: skip
        if gain >= 0.2:
            name = f"mean pairs at an effect of {gain} over the fixed number"
            result.checks.append(Check(name, round(mean / fixed, 3), 0.5, at_most=True))


if __name__ == "__main__":
    main("gates", measure)
