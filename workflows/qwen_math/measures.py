"""What `agentloop check qwen_math` measures.

Goes in: a check run. Comes out: on simulated samples of which everything is known, what a reward
model that is fitted with the shipped listwise loss adds to a vote (tier toy); on the real tasks,
what rounds of the loop, the reward model and the tool add (tier lm).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentloop.checks.rate import solved
from agentloop.checks.run import CheckRun
from agentloop.datasets.rows import sft_rows
from agentloop.lanes.bench import Bench, Order
from agentloop.records import Bundle, Episode
from agentloop.rewards.verify import normalised
from agentloop.rewards.vote import best_of_n, majority, sigmoid, weighted_majority
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.training.scoring import RewardModel
from agentloop.workflows.assemble import assemble

ANSWERS, FEATURES, TRAIN, TEST, SAMPLES, LIST = 6, 6, 600, 400, 8, 6
SPREAD, AHEAD, SIGNAL, SHUFFLES = 1.5, 0.5, 1.6, 5
"""Deviation of the answers' log-odds; how far the right one is ahead on average; how far apart
right and wrong samples are in the one direction that tells them apart, where noise has a deviation
of 1 in each; how often labels are shuffled for the ablation, whose direction is chance."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """`answers` (items x n), right where 0; `features` (items x n x FEATURES); `odds` (items x
    ANSWERS), the policy's log-odds of the answers."""

    answers: NDArray[np.int64]
    features: Floats
    odds: Floats


def draw(items: int, n: int, direction: Floats, chance: np.random.Generator) -> Samples:
    """`n` samples for each of so many items."""
    odds = chance.normal(0.0, SPREAD, (items, ANSWERS))
    odds[:, 0] += AHEAD
    noise = chance.gumbel(size=(items, n, ANSWERS))
    answers = (odds[:, None, :] + noise).argmax(axis=2)
    features = chance.normal(size=(items, n, FEATURES))
    features += (answers == 0)[:, :, None] * SIGNAL * direction
    return Samples(answers, features, odds)


def fitted(samples: Samples, good: NDArray[np.bool_], steps: int = 60) -> Floats:
    """Weights of a linear reward model, by gradient descent on the shipped loss. Items of one kind
    only are left out."""
    import torch

    from agentloop.training import losses

    mixed = good.any(axis=1) & ~good.all(axis=1)
    features = torch.tensor(samples.features[mixed])
    labels = torch.tensor(good[mixed])
    weights = torch.zeros(FEATURES, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        losses.listwise(features @ weights, labels).value.backward()
        optimizer.step()
    found: Floats = weights.detach().numpy()
    return found


def chosen_right(samples: Samples, weights: Floats) -> dict[str, float]:
    """Share of items answered rightly by each way of choosing among the samples."""
    scores = samples.features @ weights
    right: dict[str, list[bool]] = {"maj": [], "weighted": [], "rm": [], "pass": []}
    for answers, row in zip(samples.answers, scores, strict=True):
        names = [str(one) for one in answers]
        right["maj"].append(majority(names) == "0")
        votes = [sigmoid(float(score)) for score in row]
        right["weighted"].append(weighted_majority(names, votes) == "0")
        right["rm"].append(names[best_of_n([float(score) for score in row])] == "0")
        right["pass"].append("0" in names)
    return {name: statistics.fmean(found) for name, found in right.items()}


async def simulated(run: CheckRun) -> dict[str, float]:
    """See `simulate`."""
    return simulate(run.seed)


def simulate(seed: int, shuffles: int = SHUFFLES) -> dict[str, float]:
    """Rates at 8 samples: greedy, vote, weighted vote, best by reward, any right. The ablation is
    the same reward model fitted to labels that were shuffled within their items."""
    chance = np.random.default_rng(seed)
    direction = chance.normal(size=FEATURES)
    direction /= np.linalg.norm(direction)
    train = draw(TRAIN, LIST, direction, chance)
    test = draw(TEST, SAMPLES, direction, chance)
    good = train.answers == 0
    found = chosen_right(test, fitted(train, good))
    shuffled = statistics.fmean(
        chosen_right(test, fitted(train, chance.permuted(good, axis=1)))["rm"]
        for _ in range(shuffles)
    )
    return {
        **found,
        "greedy": float((test.odds.argmax(axis=1) == 0).mean()),
        "rm_minus_maj": found["rm"] - found["maj"],
        "weighted_minus_maj": found["weighted"] - found["maj"],
        "pass_minus_rm": found["pass"] - found["rm"],
        "shuffled": shuffled,
        "rm_minus_shuffled": found["rm"] - shuffled,
    }


# --- tier lm: the real model on the real tasks ------------------------------------------------

ROUNDS, HELDOUT, VOTERS = 3, 128, 8
ALONE = (
    "You are a helpful assistant that reasons step by step. Give the result on a line that starts "
    'with "Answer:".'
)


async def self_improvement(run: CheckRun) -> dict[str, float]:
    """After `ROUNDS` cycles per arm, from the same start: held-out success with and without the
    reward model (`ranked: false`: any right sample, equal votes), and what the last reward model
    makes of 8 samples per held-out task."""
    metrics: dict[str, float] = {}
    unranked = run.beside("unranked", {"lanes.policy.ranked": False})
    for name, arm in {"ranked": run, "unranked": unranked}.items():
        reports = await arm.reports(ROUNDS)
        with Archive(arm.home) as archive:
            async with assemble(arm.loaded, archive, arm.options(reports[-1].cycle)) as kit:
                first = archive.get(archive.alias_history(kit.alias)[0].bundle, Bundle)
                last = archive.get(reports[-1].bundle, Bundle)
                before, after = (
                    await solved(kit.bench, first, HELDOUT),
                    await solved(kit.bench, last, HELDOUT),
                )
                metrics |= {f"{name}.before": before, f"{name}.after": after,
                            f"{name}.gain": after - before}  # fmt: skip
                if arm is run:
                    metrics |= await voted(kit.bench, last)
    metrics["ranked_minus_unranked"] = metrics["ranked.after"] - metrics["unranked.after"]
    return metrics


async def tool_gain(run: CheckRun) -> dict[str, float]:
    """Held-out success after one cycle with the tool, and after one of an agent that has none."""
    alone = run.beside("alone", {"tools": [], "instruction": ALONE})
    metrics: dict[str, float] = {}
    for name, arm in {"tool": run, "alone": alone}.items():
        [report] = await arm.reports(1)
        with Archive(arm.home) as archive:
            async with assemble(arm.loaded, archive, arm.options(report.cycle)) as kit:
                metrics[name] = await solved(kit.bench, archive.get(report.bundle, Bundle), HELDOUT)
    return {**metrics, "tool_minus_alone": metrics["tool"] - metrics["alone"]}


async def voted(bench: Bench, bundle: Bundle) -> dict[str, float]:
    """The four ways of choosing among `VOTERS` samples, with the cycle's own reward model."""
    tasks = bench.tasks.draw(HELDOUT, split="heldout", seed=bench.seed)
    order = Order(purpose="eval", subject="vote", samples=VOTERS, temperature=0.7)
    made = await bench.attempt(tasks, bundle, order)
    pairs = [(one, sft_rows([one], system=bench.instruction(bundle).text)) for one in made]
    usable = [(one, rows[-1]) for one, rows in pairs if rows and one.score is not None]
    [entry] = list(bench.archive.read(Query(kinds=("reward_model",), newest=True, limit=1)))
    assert isinstance(entry.body, dict) and bench.base_model is not None
    directory = bench.home / str(entry.body["directory"])
    async with RewardModel(bench.base_model, directory) as model:
        scores = await model.score([row for _, row in usable])
    groups: dict[str, list[tuple[Episode, float]]] = {}
    for (one, _), score in zip(usable, scores, strict=True):
        groups.setdefault(one.task.id, []).append((one, score))
    right: dict[str, list[bool]] = {"maj@8": [], "weighted@8": [], "rm@8": [], "pass@8": []}
    for group in groups.values():
        answers = [normalised(one.answer or "") for one, _ in group]
        known = {name: one.success for name, (one, _) in zip(answers, group, strict=True)}
        right["maj@8"].append(known[majority(answers) or ""])
        weights = [sigmoid(score) for _, score in group]
        right["weighted@8"].append(known[weighted_majority(answers, weights) or ""])
        right["rm@8"].append(group[best_of_n([score for _, score in group])][0].success)
        right["pass@8"].append(any(one.success for one, _ in group))
    return {name: statistics.fmean(found) for name, found in right.items()}
