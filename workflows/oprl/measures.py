"""What `agentloop check oprl` measures.

Goes in: a check run. Comes out: on `KeySteps` (a made-up task of which everything is known) how
fast a policy learns with and without step rewards, each way of learning at the best of its rates
(tier toy); on the real tasks, the same comparison with the real model (tier lm).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentloop.checks.run import CheckRun
from agentloop.datasets import advantages
from agentloop.lanes.bench import Bench, Order
from agentloop.records import Bundle, Episode, Json
from agentloop.store.archive import Archive
from agentloop.training.schedules import LinearRamp
from agentloop.workflows.assemble import assemble

if TYPE_CHECKING:
    from torch import Tensor

    from agentloop.training.toy import Drawn, TabularPolicy

WORLDS, TASKS, STEPS, ACTIONS, KEYS, FEATURES, GROUP, UPDATES = 3, 6, 16, 4, 3, 40, 8, 150
"""`WORLDS` are learned at once and apart; a figure is the mean over them."""
RATES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
SCALE = 2.0**0.5
"""Of a feature."""
BASELINE: advantages.Baseline = "leave_one_out"
BETA, JUDGE_RATE, TRUST = 0.05, 100.0, LinearRamp(low=0.55, high=0.75)
"""Of the step rewards. The second model's rate is large: beta is a factor of its gradient."""


class KeySteps:
    """In each world `TASKS` tasks of `STEPS` steps with `ACTIONS` actions each; a rollout is right
    when it takes the one right action at each of its task's `KEYS` decisive steps. What to do is a
    linear function of random features of (task, step), so tasks and steps disturb each other."""

    def __init__(self, seed: int) -> None:
        import torch

        chance = torch.Generator().manual_seed(seed)
        tasks = WORLDS * TASKS
        blocks = torch.randn(WORLDS, TASKS * STEPS, FEATURES, generator=chance) * SCALE
        self.features = torch.block_diag(*blocks)  # a world's weights are its own
        order = [torch.randperm(STEPS, generator=chance)[:KEYS] for _ in range(tasks)]
        self.keys = torch.stack(order)
        self.right = torch.randint(ACTIONS, (tasks, KEYS), generator=chance)
        self.starts = torch.arange(tasks).repeat_interleave(GROUP)[:, None]
        self.names = [str(task) for task in self.starts[:, 0].tolist()]
        self.world = (self.starts[:, 0] // TASKS).tolist()
        self.decisive = torch.zeros(tasks, STEPS, dtype=torch.bool).scatter(1, self.keys, True)

    def policy(self, rate: float, seed: int) -> TabularPolicy:
        """One that knows nothing."""
        import torch

        from agentloop.training.toy import Learning, TabularPolicy

        return TabularPolicy(
            torch.zeros(WORLDS * FEATURES, ACTIONS), learning=Learning("sgd", rate),
            features=self.features,
            context=lambda prefix: prefix[:, 0] * STEPS + prefix.shape[1] - 1, seed=seed,
        )  # fmt: skip

    def hits(self, tokens: Tensor) -> Tensor:
        """Which decisive actions were right, (rows x KEYS)."""
        task = tokens[:, 0]
        return tokens[:, 1:].gather(1, self.keys[task]) == self.right[task]

    def rate(self, policy: TabularPolicy) -> float:
        """The policy's chance to be right, exactly, as the mean over tasks and worlds."""
        import torch

        with torch.no_grad():
            rows = torch.arange(len(self.keys))[:, None] * STEPS + self.keys
            chance = policy.at(rows).softmax(-1).gather(-1, self.right[..., None])
        return float(chance[..., 0].prod(dim=1).mean())


@dataclass
class Judge:
    """The second model: step rewards, and what it takes to trust them."""

    world: KeySteps
    model: TabularPolicy
    learns: bool = True
    accuracy: list[float] = field(default_factory=lambda: [0.5] * WORLDS)
    """By world, on pairs that it was not fitted to yet, an average of the last updates."""

    def rewards(self, drawn: Drawn) -> Tensor:
        """Step rewards (rows x STEPS), with a gradient."""
        import torch

        from agentloop.training import losses

        steps = torch.arange(STEPS).expand(len(drawn.tokens), STEPS)
        return losses.implicit_rewards(
            self.model.logp(drawn.tokens, 1), drawn.logp, steps, STEPS, BETA
        )

    def fit(self, drawn: Drawn, good: Sequence[bool]) -> list[float]:
        """One update on every pair of a right and a wrong rollout of a task; by world that has a
        pair, the share of them that was in the right order before."""
        from agentloop.training import losses

        pairs: dict[int, list[tuple[int, int]]] = {}
        for one, two in losses.success_pairs(good, self.world.names):
            pairs.setdefault(self.world.world[one], []).append((one, two))
        if not pairs:
            return []
        scores = self.rewards(drawn).mean(dim=1)
        found: list[float] = []
        total = scores.new_zeros(())
        for world, each in pairs.items():
            loss = losses.pair_logistic(
                scores[[one for one, _ in each]], scores[[two for _, two in each]]
            )
            total = total + loss.value
            found.append(float(loss.stats["accuracy"]))
            self.accuracy[world] = 0.9 * self.accuracy[world] + 0.1 * found[-1]
        if self.learns:
            self.model.step(total)
        return found


@dataclass(frozen=True)
class Arm:
    """A way of learning: where step rewards come from."""

    judge: bool = False
    learns: bool = True
    blind: bool = False
    """Step rewards count in full from the start, whatever they know."""


ARMS = {"rloo": Arm(), "oprl": Arm(judge=True), "stale": Arm(judge=True, learns=False, blind=True)}


def learned(arm: Arm, rate: float, seed: int, updates: int = UPDATES) -> dict[str, float]:
    """`auc` and `final` of the chance to be right, over the updates and their last ten; for a judge
    `accuracy` on fresh pairs (mean of the second half) and `contrast`: how many times as much step
    rewards differ at decisive steps as at others (median of the first fifth)."""
    import torch

    from agentloop.training.replay_settings import ReplaySettings
    from agentloop.training.toy_rows import aligned, learn

    settings = ReplaySettings(reduction="sum", length=float(TASKS * GROUP * STEPS))
    world = KeySteps(seed)
    policy = world.policy(rate, seed)
    judge = Judge(world, world.policy(JUDGE_RATE, 0), arm.learns)
    decisive = world.decisive[world.starts[:, 0]]
    curve: list[float] = []
    accuracy: list[float] = []
    contrast: list[float] = []
    for _ in range(updates):
        curve.append(world.rate(policy))
        drawn = policy.sample(world.starts, STEPS)
        good = world.hits(drawn.tokens).all(dim=1)
        steps, alphas = torch.zeros_like(drawn.logp), [0.0] * WORLDS
        if arm.judge:
            order = judge.fit(drawn, good.tolist())
            steps = judge.rewards(drawn).detach()
            alphas = [1.0 if arm.blind else TRUST.at(one) for one in judge.accuracy]
            accuracy += [statistics.fmean(order)] if order else []
            spread = float(steps[decisive].std()), float(steps[~decisive].std())
            contrast += [spread[0] / spread[1]] if spread[1] > 0 else []
        gains = torch.tensor(credit(good.double().tolist(), steps.tolist(), alphas))
        learn(policy, aligned(drawn.tokens, drawn.logp, gains, settings), settings)
    return {
        "auc": statistics.fmean(curve), "final": statistics.fmean(curve[-10:]),
        "accuracy": statistics.fmean(accuracy[len(accuracy) // 2 :] or [0.5]),
        "contrast": statistics.median(contrast[: UPDATES // 5] or [0.0]),
    }  # fmt: skip


def credit(
    rewards: Sequence[float], steps: Sequence[Sequence[float]], alphas: Sequence[float]
) -> list[list[float]]:
    """Advantages (rows x STEPS), by groups of one task; `alphas` by world."""
    found: list[list[float]] = []
    for at in range(0, len(rewards), GROUP):
        group = slice(at, at + GROUP)
        alpha = alphas[at // (GROUP * TASKS)]
        found += advantages.step_and_episode(
            rewards[group], steps[group], alpha=alpha, baseline=BASELINE
        )
    return found


async def key_steps(run: CheckRun) -> dict[str, float]:
    """See `compare`."""
    return compare(run.seed)


def compare(seed: int, updates: int = UPDATES) -> dict[str, float]:
    """Every arm at the best of `RATES` by its own area under the curve, on the same worlds with as
    many rollouts; and what step rewards add, at best rates and at each rate."""
    metrics: dict[str, float] = {}
    for name, arm in ARMS.items():
        found = {rate: learned(arm, rate, seed, updates) for rate in RATES}
        best = max(RATES, key=lambda rate: found[rate]["auc"])
        metrics |= {f"{name}.{key}": value for key, value in found[best].items()}
        metrics[f"{name}.rate"] = best
        metrics |= {f"{name}.auc@{rate:g}": each["auc"] for rate, each in found.items()}
    for name in ("rloo", "stale"):
        metrics[f"oprl_minus_{name}"] = metrics["oprl.auc"] - metrics[f"{name}.auc"]
    for rate in RATES:
        metrics[f"oprl_minus_rloo@{rate:g}"] = (
            metrics[f"oprl.auc@{rate:g}"] - metrics[f"rloo.auc@{rate:g}"]
        )
    return metrics


# --- tier lm: the real model on the real tasks ------------------------------------------------

CYCLES, HELDOUT = 2, 128
LM_RATES = (1e-4, 3e-4)
OUTCOME: dict[str, Json] = {"lanes.policy.alpha": 0.0, "lanes.policy.baseline": "leave_one_out"}
"""The other arm: the episode's advantage alone."""


async def against_outcome(run: CheckRun) -> dict[str, float]:
    """After `CYCLES` cycles from the same start with as many rollouts, both arms at the better of
    `LM_RATES`: held-out success, and how many steps a success took, greedily."""
    metrics: dict[str, float] = {}
    for name, changes in {"oprl": {}, "rloo": OUTCOME}.items():
        found: dict[float, tuple[float, float]] = {}
        for rate in LM_RATES:
            given: dict[str, Json] = {**changes, "lanes.policy.settings.learning_rate": rate}
            arm = run.beside(f"{name}-{rate:g}", given)
            reports = await arm.reports(CYCLES)
            with Archive(arm.home) as archive:
                async with assemble(arm.loaded, archive, arm.options(reports[-1].cycle)) as kit:
                    bundle = archive.get(reports[-1].bundle, Bundle)
                    found[rate] = await heldout(kit.bench, bundle)
        best = max(found, key=lambda rate: found[rate])
        metrics |= {f"{name}.after": found[best][0], f"{name}.steps": found[best][1],
                    f"{name}.rate": best}  # fmt: skip
    metrics["oprl_minus_rloo"] = metrics["oprl.after"] - metrics["rloo.after"]
    metrics["more_steps"] = metrics["oprl.steps"] - metrics["rloo.steps"]
    return metrics


async def heldout(bench: Bench, bundle: Bundle) -> tuple[float, float]:
    """Share of held-out tasks solved, and the mean number of steps of those."""
    tasks = bench.tasks.draw(HELDOUT, split="heldout", seed=bench.seed)
    made = await bench.attempt(tasks, bundle, Order(purpose="eval", subject="heldout"))
    scored = [one for one in made if one.score is not None]
    right: list[Episode] = [one for one in scored if one.success]
    steps = [float(one.usage.calls) for one in right]
    return len(right) / max(len(scored), 1), statistics.fmean(steps) if steps else 0.0
