"""What `agentloop check spear` measures.

Goes in: a check run. Comes out: on six made-up tasks whose first step must be a call of a tool that
the policy seldom thinks of, how fast four arms learn from the same number of rollouts: policy
gradient alone, with the bonus for tools, with self-imitation, with both (tier toy); and what the
same parts do on the real tasks (tier lm). The decision worth knowing: an arm is the workflow's own
plan with a part of it at 0.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentloop.checks.rate import solved
from agentloop.checks.run import CheckRun
from agentloop.datasets.groups import tools_called
from agentloop.datasets.replay import Replay
from agentloop.records import Bundle, Episode, Json
from agentloop.refs import load_file
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.training.schedules import CosineDecay, CosineRamp
from agentloop.trajectories.redact import Redactor
from agentloop.workflows.assemble import assemble

if TYPE_CHECKING:
    from agentloop.training.toy import TabularPolicy

TASKS, STEPS, ACTIONS, TOOL = 6, 4, 3, 2
"""`TOOL` is the action that calls the tool: right as the first one, wrong as any later."""
SHY = -1.0
"""Its logit at the start, where the others have 0."""
SAMPLES, ITERATIONS, PHASE = 8, 200, 60
"""Rollouts per task and update; updates; how many of them bonus and ramp take."""
RATES = {"grpo": 2048.0, "tool": 128.0, "sil": 2048.0, "spear": 128.0}
"""Of plain gradient descent on the mean over the rows of all tasks: each arm's best of 8, 16, 32, …
2048 on a seed that is not measured (101)."""
ONE = 8.0
"""The rate that is the same for all arms; with it the policy gradient alone has an area of 0.71 on
other seeds than those measured; 0.70 is that of the bars' source."""
SETTINGS: dict[str, Json] = {"reduction": "constant", "covariance": {}}

_parts: Any = load_file(Path(__file__).with_name("parts.py"))
FULL = _parts.Progressive(
    bonus=CosineDecay(steps=PHASE), ramp=CosineRamp(steps=PHASE),
    replay=Replay(max_age=5, at_least=12), drawn=8,
)  # fmt: skip
NO_BONUS, NO_REPLAY = CosineDecay(steps=PHASE, peak=0.0), CosineRamp(steps=PHASE, peak=0.0)
ARMS = {
    "grpo": replace(FULL, bonus=NO_BONUS, ramp=NO_REPLAY),
    "tool": replace(FULL, ramp=NO_REPLAY),
    "sil": replace(FULL, bonus=NO_BONUS),
    "spear": FULL,
}


@dataclass(frozen=True)
class World:
    """The one right way through each task, and the policy that looks for it."""

    ways: list[tuple[int, ...]]
    policy: TabularPolicy

    def success(self) -> float:
        """Exact: the probability of the right way, mean over tasks."""
        import torch

        every = torch.tensor([(task, *way) for task, way in enumerate(self.ways)])
        with torch.no_grad():
            return float(self.policy.logp(every, 1).sum(dim=1).exp().mean())

    def rollouts(self, number: int) -> list[Episode]:
        """`SAMPLES` of each task, one turn per action, scored."""
        import torch

        from agentloop.training.toy_rows import Turn, episode

        prompts = torch.arange(TASKS).repeat_interleave(SAMPLES)[:, None]
        drawn = self.policy.sample(prompts, STEPS)
        found = []
        for at, ((task, *way), logp) in enumerate(
            zip(drawn.tokens.tolist(), drawn.logp.tolist(), strict=True)
        ):
            turns = [
                Turn(
                    shown=() if place else (task,), ids=(action,), logprobs=(logp[place],),
                    tool="look" if action == TOOL else "",
                )
                for place, action in enumerate(way)
            ]  # fmt: skip
            reward = float(tuple(way) == self.ways[task])
            found.append(episode(f"{number}-{at}", f"task {task}", turns, reward, run=str(number)))
        return found


def world(seed: int, rate: float = ONE) -> World:
    """The same for the same seed, sampling included."""
    import torch

    from agentloop.training.toy import Learning, TabularPolicy, whole_prefix

    chance = torch.Generator().manual_seed(seed)
    context, rows = whole_prefix(ACTIONS, STEPS)
    table = torch.zeros(rows(TASKS), ACTIONS, dtype=torch.float64)
    table[:, TOOL] = SHY
    later = torch.randint(TOOL, (TASKS, STEPS - 1), generator=chance)
    ways = [(TOOL, *way) for way in later.tolist()]
    learning = Learning("sgd", rate)
    return World(ways, TabularPolicy(table, learning=learning, context=context, seed=seed))


def learn(arm: str, seed: int, iterations: int = ITERATIONS, rate: float = ONE) -> dict[str, float]:
    """One arm: the area under its curve of success (the mean over updates), where it ended, how
    many rollouts and replayed rows, and tool calls per rollout while the bonus is paid and last."""
    from agentloop.training.replay_settings import ReplaySettings
    from agentloop.training.toy_rows import update

    settings, redact = ReplaySettings.model_validate(SETTINGS), Redactor({})
    here, lessons = world(seed, rate), _parts.Lessons(ARMS[arm])
    curve, calls, rollouts, replayed = list[float](), list[float](), 0, 0
    for number in range(iterations):
        curve.append(here.success())
        episodes = here.rollouts(number)
        rollouts += len(episodes)
        calls.append(statistics.fmean(len(tools_called(one)) for one in episodes))
        fresh, again = lessons.next(episodes, redact=redact)
        replayed += len(again)
        for rows in (fresh, again):
            if rows:
                update(here.policy, rows, settings, seed=number)
    return {
        arm: statistics.fmean(curve), f"{arm}.last": here.success(), f"{arm}.rollouts": rollouts,
        f"{arm}.replayed": replayed, f"{arm}.calls_peak": max(calls[:PHASE]),
        f"{arm}.calls_last": statistics.fmean(calls[-20:]),
    }  # fmt: skip


async def tools_first(run: CheckRun) -> dict[str, float]:
    """See `compare`."""
    return compare(run.seed)


def compare(seed: int, iterations: int = ITERATIONS) -> dict[str, float]:
    """The four arms from the same start with as many rollouts, and what each part adds: each arm at
    its own rate, and (`….one_rate`) all at the same."""
    found: dict[str, float] = {}
    for arm in ARMS:
        found |= learn(arm, seed, iterations, RATES[arm])
        same = learn(arm, seed, iterations)
        found |= {f"{name}.one_rate": value for name, value in same.items()}
    for end in ("", ".one_rate"):
        for arm in (one for one in ARMS if one != "grpo"):
            found[f"{arm}_minus_grpo{end}"] = found[arm + end] - found[f"grpo{end}"]
    return found


# --- tier lm: the real model on the real tasks ------------------------------------------------

ROUNDS, HELDOUT = 4, 128
PLAIN: dict[str, Json] = {"lanes.policy.plan.bonus.peak": 0.0, "lanes.policy.plan.ramp.peak": 0.0}


async def cycles(run: CheckRun) -> dict[str, float]:
    """`ROUNDS` cycles with both parts and with neither, from the same start and with as many
    rollouts: the share of rollouts that was right in each cycle, its mean, and held-out success and
    tool calls of the champion at the end."""
    metrics: dict[str, float] = {}
    for name, arm in {"spear": run, "plain": run.beside("plain", PLAIN)}.items():
        reports = await arm.reports(ROUNDS)
        with Archive(arm.home) as archive:
            async with assemble(arm.loaded, archive, arm.options(reports[-1].cycle)) as kit:
                last = archive.get(reports[-1].bundle, Bundle)
                metrics[f"{name}.heldout"] = await solved(kit.bench, last, HELDOUT)
            for number, report in enumerate(reports):
                made = archive.episodes(Query(run=report.cycle, purpose="collect"))
                metrics[f"{name}.solved@{number}"] = statistics.fmean(one.success for one in made)
                calls = statistics.fmean(len(tools_called(one)) for one in made)
                metrics[f"{name}.calls@{number}"] = calls
        metrics[name] = statistics.fmean(metrics[f"{name}.solved@{at}"] for at in range(ROUNDS))
    metrics["spear_minus_plain"] = metrics["spear"] - metrics["plain"]
    metrics["heldout_minus_plain"] = metrics["spear.heldout"] - metrics["plain.heldout"]
    return metrics
