"""What `agentloop check score_rl` measures.

Goes in: a check run. Comes out: on `TwoAttempt` (a made-up task of which everything is known) what
reinforcement learning in two stages teaches about mending an answer, beside the same learning
without the method's parts (tier toy); on the real tasks, the same comparison with the real model
(tier lm).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentloop.checks.run import CheckRun
from agentloop.datasets import advantages
from agentloop.lanes.bench import Bench, Order
from agentloop.records import Bundle, Json
from agentloop.refs import load_file
from agentloop.store.archive import Archive
from agentloop.training.schedules import Bound, Stage, StagePlan
from agentloop.workflows.assemble import assemble

if TYPE_CHECKING:
    from torch import Tensor

    from agentloop.training.anchors import Anchor
    from agentloop.training.toy import TabularPolicy

PARTS = load_file(Path(__file__).with_name("parts.py"))
TASKS, ANSWERS, SAMPLES, FRESH = 200, 5, 4, 4000
TELLS = 0.85
"""How often the cue, which the second attempt sees, is right about the first answer."""
AHEAD, SPREAD, COPY = 1.0, 1.0, -2.0
"""Log-odds: how far the right answer is ahead, how much problems differ, and of changing an
answer rather than repeating it, at the start."""
KEEP, CHANGE = 0, 1
RATE = 0.05


@dataclass(frozen=True)
class Played:
    """Both attempts of rows of problems. `tokens` (rows x 4): the problem, its first answer, the
    cue, keep or change; `logp` (rows x 3) as sampled; right answers are 0."""

    tokens: Tensor
    logp: Tensor
    first: Tensor
    second: Tensor

    def rates(self) -> dict[str, float]:
        """Accuracies, transitions and how often the answer was changed."""
        pairs = list(zip(self.first.tolist(), self.second.tolist(), strict=True))
        changed = (self.tokens[:, 3] == CHANGE).tolist()
        found: dict[str, float] = PARTS.transitions(pairs)
        return {**found, "edited": statistics.fmean(changed)}


class TwoAttempt:
    """Problems with `ANSWERS` answers each. The first answer is drawn from the problem's own
    log-odds, which can be memorised; then a cue is shown, right in `TELLS` of the cases, and the
    answer is kept, or changed for another one as the problem's log-odds at the start have it. What
    to do on a cue is shared by all problems, so it is what is learned for fresh ones."""

    def __init__(self, seed: int, problems: int) -> None:
        import torch

        self.chance = torch.Generator().manual_seed(seed)
        self.problems = problems
        self.odds = torch.randn(problems, ANSWERS, generator=self.chance) * SPREAD
        self.odds[:, 0] += AHEAD

    def policy(self, gate: Tensor | None = None, seed: int = 0) -> TabularPolicy:
        """Log-odds at the start: a row for each problem, then one for each cue (`gate`, when it was
        learned elsewhere)."""
        import torch

        from agentloop.training.toy import Learning, TabularPolicy

        if gate is None:
            gate = torch.full((2, ANSWERS), -1e4)
            gate[:, KEEP], gate[:, CHANGE] = 0.0, COPY
        return TabularPolicy(
            torch.cat([self.odds, gate]), learning=Learning("adam", RATE), context=self.row,
            seed=seed,
        )  # fmt: skip

    def row(self, prefix: Tensor) -> Tensor:
        """The problem's until its answer is given, then the cue's."""
        return prefix[:, 0] if prefix.shape[1] < 3 else self.problems + prefix[:, 2]

    def play(self, policy: TabularPolicy, samples: int) -> Played:
        """`samples` conversations about each problem."""
        import torch

        problem = torch.arange(self.problems).repeat_interleave(samples)[:, None]
        one = policy.sample(problem, 1)
        answer = one.tokens[:, 1]
        right = answer == 0
        told = torch.rand(len(right), generator=self.chance) < TELLS
        cue = (right == told).long()[:, None]
        two = policy.sample(torch.cat([one.tokens, cue], dim=1), 1)
        other = self.odds[problem[:, 0]].scatter(1, answer[:, None], -torch.inf).softmax(-1)
        redone = torch.multinomial(other, 1, generator=self.chance)[:, 0]
        changed = two.tokens[:, 3] == CHANGE
        second = torch.where(changed, redone, answer) == 0
        logp = torch.cat([one.logp, torch.zeros_like(one.logp), two.logp], dim=1)
        return Played(two.tokens, logp, right, second)


@dataclass(frozen=True)
class Arm:
    """One way of learning. `stages` say what `credit` and the anchor are in each: `bonus`, `first`
    (weight of the first attempt's own advantage), `hold` (weight of the divergence on it)."""

    stages: tuple[Stage, ...]
    shared: bool = False
    """Both attempts are paid the sum of both rewards: plain multi-turn reinforcement learning."""


STEPS = 300
FIRST = Stage(
    name="first", steps=20, settings={"bonus": 0.0, "first": 0.0, "hold": 1.0},
    leave={"delta": Bound(low=0.02), "moved": Bound(high=0.02)}, most=STEPS // 2,
)  # fmt: skip
SECOND = Stage(name="second", steps=STEPS, settings={"bonus": 10.0, "first": 1.0, "hold": 1.0})


def second(**changes: float) -> Stage:
    """The second stage with other settings."""
    return replace(SECOND, settings={**SECOND.settings, **changes})


ARMS = {
    "score": Arm((FIRST, SECOND)),
    "naive": Arm((second(bonus=0.0, hold=0.0),), shared=True),
    "loose": Arm((FIRST, second(hold=0.02))),
    "half": Arm((FIRST, second(hold=0.5))),
    "one_stage": Arm((SECOND,)),
    "no_bonus": Arm((FIRST, second(bonus=0.0))),
}


@dataclass
class Learner:
    """A policy on training problems, updated by the shipped credit and losses."""

    world: TwoAttempt
    policy: TabularPolicy
    anchor: Anchor

    @classmethod
    def begin(cls, seed: int) -> Learner:
        """At the start, for this seed."""
        from agentloop.training.anchors import Anchor

        world = TwoAttempt(seed, TASKS)
        policy = world.policy(seed=seed)
        return cls(world, policy, Anchor(policy))

    def step(self, settings: dict[str, Json], shared: bool) -> dict[str, float]:
        """Sample, credit, one update; the rates of what was sampled."""
        played = self.world.play(self.policy, SAMPLES)
        self.update(played, credit(played, settings, shared), float(str(settings["hold"])))
        return played.rates()

    def update(self, played: Played, paid: Sequence[tuple[float, float]], hold: float) -> None:
        """One step on both attempts, the first of which is held to the start."""
        import torch

        from agentloop.training.replay_settings import ReplaySettings
        from agentloop.training.toy_rows import aligned, learn

        held: Json = {"first": hold, "estimator": "k2"}
        settings = ReplaySettings.model_validate({"reduction": "constant", "anchor": held})
        gains = torch.tensor([(one, 0.0, two) for one, two in paid])
        tokens = aligned(
            played.tokens, played.logp, gains, settings,
            sampled=torch.tensor([True, False, True]).expand_as(played.logp),
            first=torch.tensor([True, False, False]).expand_as(played.logp),
        )  # fmt: skip
        learn(self.policy, tokens, settings, anchor=self.anchor)

    def fresh(self, seed: int) -> dict[str, float]:
        """Rates on problems that were never seen."""
        world = TwoAttempt(seed + 10_000, FRESH)
        gate = self.policy.snapshot()["table"][TASKS:]
        return world.play(world.policy(gate, seed), 1).rates()


def credit(played: Played, settings: dict[str, Any], shared: bool) -> list[tuple[float, float]]:
    """Advantages of both attempts of each row, by groups of one problem."""
    pairs = list(zip(played.first.double().tolist(), played.second.double().tolist(), strict=True))
    found: list[tuple[float, float]] = []
    for at in range(0, len(pairs), SAMPLES):
        group = pairs[at : at + SAMPLES]
        if shared:
            whole = advantages.normalised([one + two for one, two in group], "mean")
            found += [(one, one) for one in whole]
        else:
            found += advantages.two_attempts(
                group, bonus=settings["bonus"], first=settings["first"]
            )
    return found


def learned(arm: Arm, seed: int, steps: int = STEPS) -> dict[str, float]:
    """Rates on fresh problems after `steps` updates, and those of the last updates on the training
    problems."""
    learner = Learner.begin(seed)
    plan, at, done = StagePlan(stages=list(arm.stages)), 0, 0
    base = learner.world.play(learner.policy, SAMPLES).rates()["acc1"]
    seen: list[dict[str, float]] = []
    left = 0
    for number in range(steps):
        stage = plan.stage(at)
        seen.append(learner.step(stage.settings, arm.shared))
        done += 1
        late = {name: statistics.fmean(one[name] for one in seen[-10:]) for name in seen[-1]}
        measures = {"delta": late["delta"], "moved": abs(late["acc1"] - base)}
        if at + 1 < len(plan) and plan.next(at, done, measures) != at:
            at, done, left = at + 1, 0, number + 1
    train = {f"train.{name}": value for name, value in late.items()}
    return {**learner.fresh(seed), **train, "first_stage": float(left)}


async def two_attempt(run: CheckRun) -> dict[str, float]:
    """See `compare`."""
    return compare(run.seed)


def compare(seed: int, steps: int = STEPS) -> dict[str, float]:
    """Every arm from the same start with the same number of updates on as many samples."""
    metrics: dict[str, float] = {}
    for name, arm in ARMS.items():
        found = learned(arm, seed, steps)
        metrics |= {f"{name}.{key}": value for key, value in found.items()}
        metrics[f"{name}.abs_delta"] = abs(found["delta"])
    for name in ("one_stage", "no_bonus"):
        metrics[f"score_minus_{name}"] = metrics["score.delta"] - metrics[f"{name}.delta"]
    return metrics


# --- tier lm: the real model on the real tasks ------------------------------------------------

CYCLES, HELDOUT = 4, 128
PLAIN: dict[str, Json] = {
    "lanes.policy": {
        "use": "agentloop.lanes.phase:Phase",
        "credit": {"use": "group", "of": "total"},
        "rows": "rl",
        "settings": {"epochs": 1, "batch_size": 64, "learning_rate": 1.0e-4},
    }
}
"""The other arm: both attempts are paid the sum of both rewards, and nothing is held."""


async def against_plain(run: CheckRun) -> dict[str, float]:
    """After `CYCLES` cycles per arm, from the same start and with as many rollouts: accuracies and
    transitions of both attempts at held-out tasks, greedily, and what the first attempt gained."""
    metrics: dict[str, float] = {}
    for name, arm in {"score": run, "naive": run.beside("naive", PLAIN)}.items():
        reports = await arm.reports(CYCLES)
        with Archive(arm.home) as archive:
            async with assemble(arm.loaded, archive, arm.options(reports[-1].cycle)) as kit:
                first = archive.get(archive.alias_history(kit.alias)[0].bundle, Bundle)
                last = archive.get(reports[-1].bundle, Bundle)
                before, after = await figures(kit.bench, first), await figures(kit.bench, last)
        metrics |= {f"{name}.{key}": value for key, value in after.items()}
        metrics |= {f"{name}.before.{key}": value for key, value in before.items()}
        metrics[f"{name}.acc1_gain"] = after["acc1"] - before["acc1"]
    return metrics


async def figures(bench: Bench, bundle: Bundle) -> dict[str, float]:
    """`self_correction` on held-out tasks."""
    tasks = bench.tasks.draw(HELDOUT, split="heldout", seed=bench.seed)
    made = await bench.attempt(tasks, bundle, Order(purpose="eval", subject="heldout"))
    found: dict[str, float] = PARTS.self_correction(made)
    return found
