"""What `agentloop check sage` measures.

Goes in: a check run. Comes out: what three rules of reward make of a table that writes programs in
the world (tier toy); how well functions are found again by scenario, by words, by meaning and by
both (tier toy); what a library does for a language model that imitates an expert (tier lm). The
decision worth knowing: whatever is compared is of the same tasks and as many rollouts.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from agentloop.checks.run import CheckRun
from agentloop.datasets.manifest import freeze
from agentloop.errors import UsageError
from agentloop.gates.exact import sign_test
from agentloop.lanes.bench import Bench, Order
from agentloop.lanes.chain import LIBRARY, remember, siblings, with_library
from agentloop.lanes.function_store import By, FunctionStore
from agentloop.lanes.phase import METHODS, Lesson, learn
from agentloop.ports import Lends
from agentloop.records import Bundle, Episode, Json, Task
from agentloop.refs import load_file
from agentloop.sandboxes.monty import MontySandbox
from agentloop.sandboxes.profile import Profile
from agentloop.store.archive import Archive
from agentloop.store.embed import WordLlamaEmbedder
from agentloop.tools.functions import functions
from agentloop.tools.world_code import WorldCode
from agentloop.workflows.assemble import assemble
from agentloop.worlds.apps.families import SIBLINGS
from agentloop.worlds.apps.goals import differences
from agentloop.worlds.apps.tasks import AppsTasks, chains, solution
from agentloop.worlds.apps.world import Apps

RULES = ("skill", "chain", "outcome")
RATE = 12.0
"""Of plain gradient descent on the mean over rows, the same for all rules: the best of 6, 12 and 24
for `skill` and for `outcome` on a seed that is not measured (101)."""

_folder = Path(__file__).parent


async def rules(run: CheckRun) -> dict[str, float]:
    """See `compare`."""
    return await compare(run.seed)


async def compare(seed: int, updates: int | None = None) -> dict[str, float]:
    """The three rules from the same start with as many rollouts, and how much more often the
    skill-integrated one solves both tasks and uses a function than the others."""
    import torch

    toy: Any = load_file(_folder / "toy.py")
    bench, found = toy.bench(), dict[str, float]()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the table is so small that a second thread only waits
    try:
        for rule in RULES:
            found |= await toy.learn(rule, seed, RATE, bench, updates or toy.UPDATES)
    finally:
        torch.set_num_threads(threads)
        await bench.sandbox.close()
    for other in RULES[1:]:
        found[f"skill_minus_{other}"] = found["skill.both"] - found[f"{other}.both"]
    found["use_over_outcome"] = found["skill.use"] / max(found["outcome.use"], 1 / 256)
    return found


# --- finding functions again --------------------------------------------------------------------

SCENARIOS = 240


async def retrieval(run: CheckRun) -> dict[str, float]:
    """Functions of the first tasks of `SCENARIOS` held-out scenarios in one store, and each second
    task: how often the function found first is of the same kind, and how often calling it solves
    the task."""
    drawn = AppsTasks(siblings=2).draw(2 * SCENARIOS, split="heldout", seed=run.seed)
    pairs, store = list(chains(drawn)), FunctionStore()
    for at, (first, _) in enumerate(pairs):
        [written] = functions(solution(first).replace(f"{first.family}(", f"task_{at}(", 1))
        store.add(written, first)
    embedder, sandbox = WordLlamaEmbedder(), MontySandbox(Profile(backend="monty"))
    found: dict[str, float] = {}
    try:
        for by in get_args(By):
            picked = [store.pick(second, 1, by=by, embedder=embedder) for _, second in pairs]
            kinds, solved = [], []
            for (_, second), best in zip(pairs, picked, strict=True):
                kinds.append(bool(best) and best[0].task.family == second.family)
                solved.append(bool(best) and await _solves(second, best[0], sandbox))
            found |= {f"{by}.kind": statistics.fmean(kinds),
                      f"{by}.solved": statistics.fmean(solved)}  # fmt: skip
    finally:
        await sandbox.close()
    return found


async def _solves(task: Task, kept: Any, sandbox: Lends) -> bool:
    """Whether a call of the function with the task's arguments does it."""
    world = Apps()
    world.reset(task, 0)
    call = solution(task, known=True).replace(f"{task.family}(", f"{kept.function.name}(", 1)
    await WorldCode(world, sandbox, [kept.function]).call({"code": call})
    end: Any = world.snapshot()
    return not differences(task.data["start"], end["tables"], task.data["goal"], end["answer"])  # type: ignore[arg-type]


# --- tier lm: the real model in the real world --------------------------------------------------

TRAIN, PAIRS = 360, 120
"""Scenarios that are imitated, and held-out pairs."""
SETTINGS: dict[str, Json] = {"epochs": 2, "batch_size": 16, "learning_rate": 5.0e-4}


async def library(run: CheckRun) -> dict[str, float]:
    """See `with_and_without`."""
    return await with_and_without(run, TRAIN, PAIRS)


async def with_and_without(run: CheckRun, train: int, pairs: int) -> dict[str, float]:
    """A model that imitates the expert, on the second tasks of `pairs` held-out chains: alone, with
    the functions that it wrote on the first, and with those promised and taken away."""
    with Archive(run.home) as archive:
        async with assemble(run.loaded, archive, run.options("library")) as kit:
            bench = kit.bench
            bundle = await taught(bench, train)
            drawn = AppsTasks(siblings=2).draw(2 * pairs, split="heldout", seed=run.seed)
            found = siblings(drawn, 2)
            first = await greedy(bench, [one for one, _ in found], bundle, "first")
            stores = []
            for episode in first:
                store = FunctionStore()
                await remember(store, episode, bench)
                stores.append(store)
            second = [
                with_library(each[1], store, 2, 0)
                for each, store in zip(found, stores, strict=True)
            ]
            gone = [replace(task, data={**task.data, LIBRARY: []}) for task in second]
            arms = {
                "alone": await greedy(bench, [each[1] for each in found], bundle, "alone"),
                "library": await greedy(bench, second, bundle, "library"),
                "taken": await greedy(bench, gone, bundle, "taken"),
            }
    wrote = statistics.fmean(bool(store.latest()) for store in stores)
    return {"single": _rate(first), "wrote": wrote, **judged(arms)}


async def taught(bench: Bench, train: int) -> Bundle:
    """The champion with a policy that has imitated the expert on `train` scenarios. A finished
    training is found, not repeated."""
    if bench.base_model is None or bench.trainer is None or not isinstance(bench.sandbox, Lends):
        raise UsageError("this check trains the local model; run it with `model: embedded`")
    drawn = AppsTasks().draw(SIBLINGS * train, split="train", seed=bench.seed)
    champion = bench.bundle(bench.champion)
    expert: Any = load_file(_folder / "expert.py")
    rows = await expert.rows(
        list(chains(drawn)), bench.instruction(champion).text, str(bench.base_model), bench.sandbox
    )
    dataset = freeze(rows, {"expert": train, "seed": bench.seed}, bench.home / "datasets")
    bench.archive.put(dataset)
    learned = await learn(bench, dataset, Lesson(METHODS["sft"], SETTINGS, "agent", None))
    return replace(champion, policies={"agent": learned.policy})


async def greedy(
    bench: Bench, tasks: Sequence[Task], bundle: Bundle, subject: str
) -> list[Episode]:
    """One rollout of each; those of an earlier run are found in the log."""
    return await bench.attempt(tasks, bundle, Order(purpose="eval", subject=subject))


def judged(arms: dict[str, list[Episode]]) -> dict[str, float]:
    """Success of each arm; over the pairs that both the agent alone and the one with the library
    solve, how many steps and tokens the second needs for each of the first; and what taking the
    library away does."""
    alone, known, taken = arms["alone"], arms["library"], arms["taken"]
    both = [(a, b) for a, b in zip(alone, known, strict=True) if a.success and b.success]
    lost = sum(b.success and not c.success for b, c in zip(known, taken, strict=True))
    won = sum(c.success and not b.success for b, c in zip(known, taken, strict=True))
    found = {name: _rate(made) for name, made in arms.items()}
    found |= {
        "both": float(len(both)),
        "library_minus_alone": found["library"] - found["alone"],
        "library_minus_taken": found["library"] - found["taken"],
        "taken.p": sign_test(lost, won, "greater"),
    }
    for name, count in {"steps": _steps, "tokens": _tokens}.items():
        a, b = (sum(count(pair[at]) for pair in both) for at in (0, 1))
        found |= {f"{name}_ratio": b / max(a, 1), f"{name}.alone": a / max(len(both), 1)}
    return found


def _rate(episodes: Sequence[Episode]) -> float:
    return statistics.fmean(one.success for one in episodes)


def _steps(episode: Episode) -> int:
    """Replies of the model."""
    return sum(node.sampled for each in episode.trajectories for node in each.nodes)


def _tokens(episode: Episode) -> int:
    """Sampled tokens."""
    return sum(
        len(node.token_ids) for each in episode.trajectories for node in each.nodes if node.sampled
    )
