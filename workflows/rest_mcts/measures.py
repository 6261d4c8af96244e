"""What `agentloop check rest_mcts` measures.

Goes in: a check run. Comes out: on `StepChain` (a made-up task of which everything is known) how
often the search of this repository finds a solution, beside best-of-n with the same value model and
the same number of proposals; on the real tasks, how well the value model knows good prefixes and
what its paths teach (tier lm).
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from agentloop.checks.rate import solved
from agentloop.checks.run import CheckRun
from agentloop.lanes.bench import Bench, Order
from agentloop.lanes.tree_search import TreeSearch
from agentloop.records import Bundle, Json, Purpose
from agentloop.rewards.vote import best_of_n
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.trajectories import search_tree
from agentloop.trajectories.search_tree import EVALUATE, SearchSettings
from agentloop.workflows.assemble import assemble

DEPTH, CALLS, TASKS = 6, 60, 1000
NOISES = (0.1, 0.2)


@dataclass
class StepChain:
    """`DEPTH` steps in a row must be good; each proposed one is with probability 1/2. The value of
    a path is its progress (good steps before the first bad one, of `DEPTH`) plus noise, drawn once
    per path as a model's error is. Every proposal and every value that is asked for is counted."""

    noise: float
    chance: random.Random
    proposals: int = 0
    values: int = 0
    known: dict[str, float] = field(default_factory=dict)

    def propose(self, path: Sequence[str]) -> str:
        """A step: its quality and a number that tells it from all others."""
        self.proposals += 1
        return f"{'good' if self.chance.random() < 0.5 else 'bad'} {self.proposals}"

    def value(self, path: Sequence[str]) -> float:
        """Progress and noise."""
        self.values += 1
        name = "/".join(path)
        if name not in self.known:
            self.known[name] = self.progress(path) + self.chance.gauss(0.0, self.noise)
        return self.known[name]

    @staticmethod
    def progress(path: Sequence[str]) -> float:
        """Good steps before the first bad one, of `DEPTH`."""
        good = [step.startswith("good") for step in path]
        return (good.index(False) if False in good else len(good)) / DEPTH

    @staticmethod
    def solved(path: Sequence[str]) -> bool:
        """Whether the path is a whole answer, right or wrong."""
        return len(path) >= DEPTH


Arm = Callable[[StepChain, SearchSettings], Sequence[str]]


def searched(chain: StepChain, settings: SearchSettings) -> Sequence[str]:
    """The path that the tree search answers with."""
    tree = search_tree.search(
        settings, propose=chain.propose, solved=chain.solved, value=chain.value
    )
    return search_tree.path_of(tree, search_tree.answer_node(tree))


def authors(chain: StepChain, settings: SearchSettings) -> Sequence[str]:
    """The same with the constants of the authors' evaluation, which are for larger budgets."""
    return searched(chain, replace(EVALUATE, calls=settings.calls))


def blind(chain: StepChain, settings: SearchSettings) -> Sequence[str]:
    """The same search without the value model; it only picks the answer among what was found."""
    tree = search_tree.search(
        settings, propose=chain.propose, solved=chain.solved, value=lambda path: 0.5
    )
    nodes = range(1, len(tree["nodes"]))
    paths = [search_tree.path_of(tree, at) for at in nodes if not tree["nodes"][at]["children"]]
    return paths[best_of_n([chain.value(path) for path in paths])]


def sampled(chain: StepChain, settings: SearchSettings) -> Sequence[str]:
    """Best-of-n: as many whole answers as the proposals are enough for, chosen by value."""
    paths = []
    for _ in range(settings.calls // DEPTH):
        path: list[str] = []
        while not chain.solved(path):
            path.append(chain.propose(path))
        paths.append(path)
    return paths[best_of_n([chain.value(path) for path in paths])]


def greedy(chain: StepChain, settings: SearchSettings) -> Sequence[str]:
    """No tree: as many candidates for each step as there are proposals for, the best kept."""
    path: list[str] = []
    while not chain.solved(path):
        ahead = [[*path, chain.propose(path)] for _ in range(settings.calls // DEPTH)]
        path = ahead[best_of_n([chain.value(one) for one in ahead])]
    return path


ARMS: dict[str, Arm] = {
    "search": searched, "bon": sampled, "blind": blind, "greedy": greedy, "authors": authors,
}  # fmt: skip


async def step_chain(run: CheckRun) -> dict[str, float]:
    """Share of `TASKS` solved per arm and noise, their ratio, proposals and values asked for."""
    return compare(run.seed, TASKS)


def compare(seed: int, tasks: int, arms: Sequence[str] = tuple(ARMS)) -> dict[str, float]:
    """The arms on the same number of tasks with the same budget of proposals."""
    settings = SearchSettings(calls=CALLS)
    metrics: dict[str, float] = {}
    for noise in NOISES:
        rate: dict[str, float] = {}
        for name in arms:
            chains = [StepChain(noise, random.Random(f"{seed}/{noise}/{name}/{at}"))
                      for at in range(tasks)]  # fmt: skip
            right = [chain.progress(ARMS[name](chain, settings)) == 1.0 for chain in chains]
            rate[name] = statistics.fmean(right)
            metrics[f"{name}@{noise}"] = rate[name]
            metrics[f"{name}.proposals@{noise}"] = max(chain.proposals for chain in chains)
            metrics[f"{name}.values@{noise}"] = statistics.fmean(one.values for one in chains)
        for name in (one for one in arms if one != "search"):
            metrics[f"over_{name}@{noise}"] = rate["search"] / max(rate[name], 1.0 / tasks)
    return metrics


# --- tier lm: the real model on the real tasks ------------------------------------------------

ROUNDS, HELDOUT = 2, 128
SAMPLED: dict[str, Json] = {
    "collect": {
        "use": "agentloop.lanes.collect:Explore", "rounds": 1, "tasks": 48, "samples": 8,
        "temperature": 0.7,
    }
}  # fmt: skip
"""The other arm: as many sampled tokens (8 answers of four steps for 32 proposals), the right ones
of which are imitated, without a tree and without values (ReST-EM)."""


async def self_training(run: CheckRun) -> dict[str, float]:
    """After `ROUNDS` cycles per arm, from the same start: held-out success of the policy alone, and
    how well the value model knows the prefixes that lead to a right end on held-out tasks."""
    metrics: dict[str, float] = {}
    for name, arm in {"search": run, "sampled": run.beside("sampled", SAMPLED)}.items():
        reports = await arm.reports(ROUNDS)
        with Archive(arm.home) as archive:
            async with assemble(arm.loaded, archive, arm.options(reports[-1].cycle)) as kit:
                first = archive.get(archive.alias_history(kit.alias)[0].bundle, Bundle)
                last = archive.get(reports[-1].bundle, Bundle)
                metrics |= {
                    f"{name}.before": await solved(kit.bench, first, HELDOUT),
                    f"{name}.after": await solved(kit.bench, last, HELDOUT),
                    f"{name}.sampled_tokens": sampled_tokens(archive),
                }
                if isinstance(kit.collector, TreeSearch):
                    metrics |= await heldout_search(kit.bench, kit.collector, last)
    metrics["search_minus_sampled"] = metrics["search.after"] - metrics["sampled.after"]
    return metrics


async def heldout_search(bench: Bench, part: TreeSearch, bundle: Bundle) -> dict[str, float]:
    """`auroc` of the value model over the prefixes of searches of held-out tasks, and their rate of
    success with the same number of proposals as in collecting."""
    guide = part.known(bench, own=True)
    if guide is None:
        return {"auroc": 0.5, "searched": 0.0}
    searching = part.searching(bench, guide if part.guided else None)
    tasks = bench.tasks.draw(HELDOUT // 4, split="heldout", seed=bench.seed)
    order = Order(purpose="eval", subject="search", temperature=part.temperature)
    made = await searching.attempt(tasks, bundle, order)
    found = [await part.harvest(searching, one, None) for one in made if one.score is not None]
    texts = [text for one in found for text in one.texts]
    good = [flag for one in found for flag in one.good]
    return {
        "auroc": auroc(guide.scores(texts), good) if texts else 0.5,
        "searched": sum(one.success for one in made) / max(len(made), 1),
    }


def auroc(scores: Sequence[float], good: Sequence[bool]) -> float:
    """Chance that a good one has a higher score than a bad one, ties half; 0.5 without both."""
    above = [score for score, flag in zip(scores, good, strict=True) if flag]
    below = [score for score, flag in zip(scores, good, strict=True) if not flag]
    if not above or not below:
        return 0.5
    gap = np.subtract.outer(np.asarray(above), np.asarray(below))
    return float((gap > 0).mean() + (gap == 0).mean() / 2)


def sampled_tokens(archive: Archive) -> float:
    """Tokens that the model sampled while practising, over all cycles of this home."""
    purposes: tuple[Purpose, ...] = ("collect", "train")
    episodes = (one for each in purposes for one in archive.episodes(Query(purpose=each)))
    return float(sum(one.usage.completion_tokens for one in episodes))
