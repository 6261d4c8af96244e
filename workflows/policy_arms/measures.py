"""What `agentloop check policy_arms` measures.

Goes in: a check run. Comes out: how often the start is right and which rate of learning suits each
arm (`tune`, on a seed that is not reported); what each arm makes of 512 rollouts at that rate
(`arms`), with its curve. The decision worth knowing: the start, each trial of a rate and each arm
have a home of their own, so a run that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agentloop.checks.rate import solved
from agentloop.checks.results import Results, digest
from agentloop.checks.run import CheckRun
from agentloop.errors import MissingDependency
from agentloop.gates.exact import holm
from agentloop.lanes.online import Round, rounds_of, with_policy
from agentloop.policies.registry import Policies
from agentloop.records import Bundle, Episode, Json, TrainingResult
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.workflows.assemble import alias_of, assemble, seed_champion
from agentloop.workflows.report import Report
from agentloop.workspace import home as find_home

TUNING = 7
"""The seed on which rates are chosen; no arm is reported on it."""
HELDOUT = 256
POLICY = "lanes.policy."
PASSES: dict[str, Json] = {"epochs": 2, "batch_size": 16}
ARMS: dict[str, dict[str, Json]] = {
    "rft": {
        "rows": "sft", "method": "agentloop.training.sft:train", "select": {"success": True},
        "settings": {**PASSES},
    },
    "grpo": {"settings": {**PASSES}},
    "nft": {
        "settings": {**PASSES, "loss": "negative_aware", "reduction": "sum", "length": 1000.0},
    },
    "spear": {
        "credit": "group", "ramp": {"steps": 3}, "drawn": 32,
        "replay": {"max_age": 3, "at_least": 8},
        "settings": {**PASSES, "reduction": "constant", "length": 20.0, "covariance": {}},
    },
}  # fmt: skip
RATES: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
"""Of learning, tried for every arm."""
TRIAL: dict[str, Json] = {
    "heldout.n": 64, "lanes.policy.rounds": 2, "lanes.policy.tasks": 8,
}  # fmt: skip
"""A trial of a rate: 128 rollouts, in rounds of half the size."""


@dataclass(frozen=True)
class Start:
    """The policy that all arms start from, and where it lies."""

    home: Path
    policy: str
    rate: float
    """Of held-out tasks solved."""


async def tune(run: CheckRun) -> dict[str, float]:
    """The start's rate, and of each arm the gain of every rate of learning and the one chosen: the
    one with the most held-out tasks solved, of equals the lowest."""
    start = await begin(run)
    metrics = {"start": start.rate}
    for arm in ARMS:
        found: dict[float, float] = {}
        for rate in RATES:
            trial = lend(start, run.beside(f"{arm}-{rate:g}", {**TRIAL, **keys(arm, rate)}))
            found[rate] = gain(await trial.report())
            metrics[f"{arm}.gain@{rate:g}"] = found[rate]
        metrics[f"{arm}.rate"] = max(found, key=lambda rate: (found[rate], -rate))
    return metrics


async def arms(run: CheckRun) -> dict[str, float]:
    """Each arm at its rate: held-out success before and after, the exact p-value, the curve of its
    rollouts; and of the arm that gained most the gain and p after Holm."""
    figure()  # a missing library is told before hours of work
    other = beside_seed(run, TUNING)
    chosen, start = await tune(other), await begin(other)
    metrics: dict[str, float] = {}
    for arm in ARMS:
        one = lend(start, run.beside(arm, keys(arm, chosen[f"{arm}.rate"])))
        report = await one.report()
        if report.heldout.p is None:
            run.progress(f"{arm} learned nothing: {report.lanes['policy'].reason}", 1, 1)
        metrics |= {f"{arm}.{name}": value for name, value in outcome(one, report, start).items()}
    adjusted = holm([metrics[f"{arm}.p"] for arm in ARMS])
    best = max(ARMS, key=lambda arm: metrics[f"{arm}.gain"])
    metrics |= {"best_gain": metrics[f"{best}.gain"], "best_p": adjusted[list(ARMS).index(best)]}
    for name in ("rollouts", "minutes"):
        metrics[f"{name}_most"] = max(metrics[f"{arm}.{name}"] for arm in ARMS)
    metrics["prompt_tokens"] = max(metrics[f"{arm}.prompt_tokens"] for arm in ARMS)
    draw(run, metrics)
    return metrics


def keys(arm: str, rate: float) -> dict[str, Json]:
    """What the arm changes in the workflow."""
    changes = {f"{POLICY}{key}": value for key, value in ARMS[arm].items()}
    return {**changes, f"{POLICY}settings.learning_rate": rate}


def beside_seed(run: CheckRun, seed: int) -> CheckRun:
    """The run of this check with another seed, whose home lies beside this one's."""
    name = f"{run.loaded.name}-full-{seed}-{digest(run.loaded)}"
    return replace(run, seed=seed, home=find_home(run.home.parent / name))


async def begin(run: CheckRun) -> Start:
    """The start: taught once, and measured on held-out tasks."""
    home, step = find_home(run.home / "start"), "start"
    with Archive(home) as archive:
        known = archive.step(step, "taught")
        if known is None:
            own = replace(run, home=home)
            async with assemble(run.loaded, archive, own.options(step)) as kit:
                lane: Any = kit.lanes["policy"]
                policy = await lane.teach(kit.bench)
                taught = with_policy(kit.bench.bundle(kit.bench.champion), policy)
                known = {"policy": policy, "rate": await solved(kit.bench, taught, HELDOUT)}
                archive.add_step(step, "taught", known)
    assert isinstance(known, dict)
    return Start(home, str(known["policy"]), float(str(known["rate"])))


def lend(start: Start, run: CheckRun) -> CheckRun:
    """The run, with the start as its first champion."""
    with Archive(run.home) as archive:
        alias = alias_of(run.loaded.name)
        bundle = archive.get(seed_champion(run.loaded, archive), Bundle)
        if "agent" not in bundle.policies:
            theirs = Policies(start.home / "policies")
            policy = theirs.load(start.policy)
            result = TrainingResult(
                adapter=str(theirs.path(start.policy)), sha256=policy.sha256, metrics=policy.metrics
            )
            mine = Policies(run.home / "policies").admit(result, base=policy.base)
            taught = archive.put(with_policy(bundle, archive.put(mine)))
            archive.point(alias, taught, reason="the start of all arms", scope=run.loaded.name)
    return run


def gain(report: Report) -> float:
    """Of held-out tasks; 0 for an arm that learned nothing, and its worst for one that failed."""
    lane = report.lanes["policy"]
    if lane.state == "failed":
        return -1.0
    return report.heldout.effect or 0.0


def outcome(run: CheckRun, report: Report, start: Start) -> dict[str, float]:
    """The numbers of one finished arm; one that learned nothing is where it started."""
    held = report.heldout
    before = start.rate if held.champion is None else held.champion
    with Archive(run.home) as archive:
        rounds = rounds_of(archive, report.cycle)
        made = archive.episodes(Query(run=report.cycle, purpose="train"))
    found = {
        "before": before, "after": before if held.challenger is None else held.challenger,
        "gain": held.effect or 0.0, "p": 1.0 if held.p is None else held.p,
        "learned": float(held.p is not None), "rollouts": float(len(made)),
        "minutes": report.cost.seconds / 60,
        "prompt_tokens": float(max(map(prompt_tokens, made), default=0)),
    }  # fmt: skip
    return found | curve(rounds)


def curve(rounds: list[Round]) -> dict[str, float]:
    """Share of right rollouts in each round, sampled at temperature 1."""
    return {f"solved@{one.number}": one.figures["solved"] for one in rounds}


def prompt_tokens(episode: Episode) -> int:
    """How many tokens its first prompt has."""
    count = 0
    for node in episode.trajectories[0].nodes:
        if node.sampled:
            break
        count += len(node.token_ids)
    return count


# --- curves ---------------------------------------------------------------------------------------


def figure() -> Any:
    """An empty figure; raises `MissingDependency` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("`matplotlib`", 'pip install "agentloop[plots]"') from error
    return Figure(figsize=(9, 3.6), layout="constrained")


def draw(run: CheckRun, metrics: Mapping[str, float]) -> None:
    """`curves.png` beside the workflow: all seeds that were measured by this code so far."""
    current, use = digest(run.loaded), "./measures.py:arms"
    runs = Results.read(run.loaded.folder).runs
    seeds: dict[str, Mapping[str, float]] = {
        name.rpartition("|")[2]: one["metrics"]
        for name, one in runs.items()
        if name.startswith(f"{use}|") and one["hash"] == current
    }
    seeds[str(run.seed)] = metrics
    save(run.loaded.folder / "curves.png", [seeds[name] for name in sorted(seeds)])


def save(path: Path, seeds: list[Mapping[str, float]]) -> None:
    """Left: right rollouts by round, the mean of the seeds and their range. Right: held-out
    success, a line from before to after for each seed."""
    drawn = figure()
    rollouts, heldout = drawn.subplots(1, 2)
    for place, arm in enumerate(ARMS):
        colour = f"C{place}"
        key = f"{arm}.solved@"
        numbers = sorted({int(name.removeprefix(key)) for one in seeds for name in one
                          if name.startswith(key)})  # fmt: skip
        values = [[one[f"{key}{at}"] for one in seeds if f"{key}{at}" in one] for at in numbers]
        rollouts.plot(numbers, [sum(v) / len(v) for v in values], "o-", color=colour, label=arm)
        low, high = [min(v) for v in values], [max(v) for v in values]
        rollouts.fill_between(numbers, low, high, color=colour, alpha=0.15)
        for one in seeds:
            ends = [one[f"{arm}.before"], one[f"{arm}.after"]]
            heldout.plot([place - 0.2, place + 0.2], ends, "o-", color=colour)
    rollouts.set(xlabel="round of 128 rollouts", ylabel="right, at temperature 1")
    rollouts.legend()
    heldout.set(ylabel="right, greedy, held out: before and after")
    heldout.set_xticks(range(len(ARMS)), list(ARMS))
    drawn.savefig(path, dpi=120)
