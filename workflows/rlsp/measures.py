"""What `agentloop check rlsp` measures.

Goes in: a check run. Comes out: on a made-up task (`toy.py`), what a policy that imitated a few
traces becomes by the outcome alone and with the exploration reward beside it, after the same number
of rollouts; the same comparison on the real tasks (tier lm).
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from agentloop.checks.run import CheckRun
from agentloop.datasets.credit import CriticsCredit
from agentloop.datasets.filters import Filters
from agentloop.datasets.groups import sampled_text
from agentloop.datasets.makers import RLRows
from agentloop.datasets.recipe import Recipe
from agentloop.lanes.bench import Bench, Order
from agentloop.lanes.policy import RejectionSampling
from agentloop.records import Json
from agentloop.refs import load_file
from agentloop.rewards import penalties
from agentloop.store.archive import Archive
from agentloop.trajectories.redact import Redactor
from agentloop.workflows.assemble import assemble

if TYPE_CHECKING:
    from agentloop.training.toy import TabularPolicy, ToyPolicy

TASKS, SAMPLES, UPDATES, DEMONSTRATIONS, TEST = 8, 8, 60, 400, 6000
EXPLORATION = 0.5
"""Weight of the exploration reward beside the outcome's 1, both normalised in their group."""
RATE, IMITATIONS = 0.05, 150
BUCKETS = ((1, 1), (2, 4), (5, 8), (9, 12))
"""Moves."""
ARMS = {
    "outcome": {"correct": 1.0},
    "exploration": {"correct": 1.0, "exploration": EXPLORATION},
}


async def simulated(run: CheckRun) -> dict[str, float]:
    """See `simulate`."""
    return simulate(run.seed)


def simulate(seed: int, updates: int = UPDATES) -> dict[str, float]:
    """Accuracy, marks of searching (checks and next candidates) per rollout, share of repeated
    4-grams and of rollouts without an answer: of the start (`sft`), of both arms and of the one
    that is paid for padding as well (`padded`)."""
    found: dict[str, float] = {}
    start = imitated(seed)
    weights = start.snapshot()
    found |= judged(start, seed, "sft")
    arms = {**{name: (each, True) for name, each in ARMS.items()},
            "padded": (ARMS["exploration"], False)}  # fmt: skip
    for name, (streams, distinct) in arms.items():
        start.restore(weights)
        start.generator.manual_seed(seed + 1)
        reinforce(start, CriticsCredit(weights=streams), seed, updates, distinct=distinct)
        found |= judged(start, seed, name)
    pads = found["padded.pads"] / max(found["exploration.pads"], 1e-9)
    return {**found, **compared(found), "pads_ratio": pads}


def compared(found: Mapping[str, float]) -> dict[str, float]:
    """The arm with exploration against the others."""
    accuracy, again = found["exploration.accuracy"], found["exploration.repeated"]
    return {
        "over_sft": accuracy - found["sft.accuracy"],
        "over_outcome": accuracy - found["outcome.accuracy"],
        "marks_ratio": found["exploration.marks"] / max(found["outcome.marks"], 1e-9),
        "repeated_ratio": again / max(found["outcome.repeated"], 1e-9),
    }


def toy() -> ModuleType:
    """`toy.py` beside this file."""
    return load_file(Path(__file__).with_name("toy.py"))


def imitated(seed: int) -> TabularPolicy:
    """A table that imitates traces in which an answer mostly comes at once."""
    import torch

    from agentloop.training import losses
    from agentloop.training.toy import Learning, TabularPolicy

    world = toy()
    shown = torch.full((world.ROWS, world.VOCABULARY), -30.0)
    for state, name in enumerate(world.STATES):
        moves = torch.tensor(world.DEMONSTRATED[name]).log()
        shown[state :: len(world.STATES), : len(world.MOVES)] = moves
    teacher = TabularPolicy(shown, context=world.context, seed=seed)
    ids, mask = world.imitation(world.walks(teacher, DEMONSTRATIONS, 1, random.Random(seed)))
    blank = shown.clone()
    blank[:, : len(world.MOVES)] = 0.0
    learning = Learning("adam", RATE)
    pupil = TabularPolicy(blank, learning=learning, context=world.context, seed=seed)
    for _ in range(IMITATIONS):
        pupil.step(losses.reduce(-pupil.logp(ids, 1), mask))
    return pupil


def reinforce(
    policy: ToyPolicy, credit: CriticsCredit, seed: int, updates: int, *, distinct: bool
) -> None:
    """`updates` steps, each on fresh rollouts, by the shipped selection, credit, rows and loss."""
    from agentloop.training.replay_settings import ReplaySettings
    from agentloop.training.toy_rows import update

    world, chance = toy(), random.Random(seed)
    recipe, settings = Recipe(select=Filters(), credit=credit, rows=RLRows()), ReplaySettings()
    redact = Redactor.from_environment()
    for step in range(updates):
        made = [
            world.episode(walk, f"{step}/{at}", f"{step}/{at // SAMPLES}", distinct=distinct)
            for at, walk in enumerate(world.walks(policy, TASKS, SAMPLES, chance))
        ]
        update(policy, recipe.build(made, redact=redact).rows, settings)


def judged(policy: ToyPolicy, seed: int, name: str) -> dict[str, float]:
    """The policy on `TEST` tasks of its own, sampled as it learned."""
    made = toy().walks(policy, TEST, 1, random.Random(f"test {seed}"))
    searches = [sum(move in ("check", "next") for move in one.moves) for one in made]
    found = {
        "accuracy": statistics.fmean(bool(one.correct) for one in made),
        "marks": statistics.fmean(searches),
        "repeated": repeated([one.thought for one in made]),
        "pads": statistics.fmean(one.moves.count("pad") for one in made),
        "unanswered": statistics.fmean(one.correct is None for one in made),
    }
    for low, high in BUCKETS:
        inside = [bool(one.correct) for one in made if low <= len(one.moves) <= high]
        found[f"accuracy@{low}-{high}"] = statistics.fmean(inside) if inside else 0.0
        found[f"share@{low}-{high}"] = len(inside) / len(made)
    return {f"{name}.{key}": value for key, value in found.items()}


def repeated(thoughts: Sequence[Sequence[Hashable]], ngram: int = 4) -> float:
    """Of all runs of `ngram` tokens, the share that stood before in the same thought."""
    runs = [max(0, len(one) - ngram + 1) for one in thoughts]
    return 1 - sum(penalties.distinct(one, ngram) for one in thoughts) / max(sum(runs), 1)


# --- tier lm: the real model on the real tasks ------------------------------------------------

ROUNDS, HELDOUT = 3, 128
COLD = RejectionSampling(per_cluster=120, settings={"epochs": 2, "learning_rate": 5.0e-4})


async def emergence(run: CheckRun) -> dict[str, float]:
    """Each arm imitates its own successes once, then goes on for `ROUNDS` phases with as many
    rollouts: by imitation, by the outcome, by the outcome and exploration. Held out, greedily:
    accuracy, marks of searching, repeated 4-grams of words."""
    metrics: dict[str, float] = {}
    for name in ("sft", *ARMS):
        weights: Json = dict(ARMS.get(name, ARMS["outcome"]))
        arm = run.beside(name, {"lanes.policy.credit": {"use": "critics", "weights": weights}})
        with Archive(arm.home) as archive:
            async with assemble(arm.loaded, archive, arm.options(name)) as kit:
                bench = kit.bench
                for number in range(ROUNDS + 1):
                    bench = replace(bench, run=f"{name}-{number}", seed=run.seed + 1000 * number)
                    await kit.collector.collect(bench)
                    lane = COLD if name == "sft" or not number else kit.lanes["policy"]
                    proposal = await lane.propose(bench)
                    if proposal.bundle is not None:
                        bench = replace(bench, champion=archive.put(proposal.bundle))
                metrics |= await heldout(bench, name)
    return metrics | compared(metrics)


async def heldout(bench: Bench, name: str) -> dict[str, float]:
    """The arm's last bundle on held-out tasks."""
    tasks = bench.tasks.draw(HELDOUT, split="heldout", seed=bench.seed)
    order = Order(purpose="eval", subject="heldout")
    made = await bench.attempt(tasks, bench.bundle(bench.champion), order)
    texts = [sampled_text(one) for one in made]
    own = load_file(Path(__file__).with_name("parts.py"))
    return {
        f"{name}.accuracy": statistics.fmean(one.success for one in made),
        f"{name}.marks": statistics.fmean(own.marks(text) for text in texts),
        f"{name}.repeated": repeated([text.split() for text in texts]),
    }
