"""What `agentloop check nft` measures.

Goes in: a check run. Comes out: on a table that must find two accepted strings per prompt, what the
implicit negative policy adds to imitation and how near it comes to a policy gradient (tier toy); on
the real tasks the same three arms, one phase after the other (tier lm). The decision worth knowing:
an arm is the settings of a training job and nothing else.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agentloop.checks.rate import solved
from agentloop.checks.run import CheckRun
from agentloop.datasets.credit import GroupCredit
from agentloop.datasets.filters import Filters
from agentloop.datasets.makers import RLRows
from agentloop.datasets.recipe import Recipe
from agentloop.errors import UsageError
from agentloop.records import Bundle, Episode, Json, Policy, Row
from agentloop.store.archive import Archive
from agentloop.trajectories.redact import Redactor
from agentloop.workflows.assemble import assemble

if TYPE_CHECKING:
    import torch

    from agentloop.training.toy import TabularPolicy

PROMPTS, LENGTH, VOCABULARY, ACCEPTED = 32, 3, 8, 2
SAMPLES, MINIBATCHES, ITERATIONS = 8, 4, 60
SPREAD, AHEAD = 1.0, 1.0
"""Of the start: deviation of all logits, and what is added on the way of an accepted string; then
about 3 of 100 samples are right."""
RATES = {"rft": 32000.0, "nft": 32000.0, "grpo": 4000.0}
"""Of plain gradient descent (the losses are sums divided by 1000, as in the authors' code): each
arm's best of 250, 500, 1000, … 32000 on a seed that is not measured (101)."""
ONE = 500.0
"""The rate that is the same for all arms, at which an update moves the policy little."""

SUMMED: dict[str, Json] = {"reduction": "sum", "length": 1000.0}
ARMS: dict[str, dict[str, Json]] = {
    "rft": {"loss": "negative_aware", "negatives": {"weight": 0.0}, **SUMMED},
    "nft": {"loss": "negative_aware", **SUMMED},
    "grpo": {"loss": "policy_gradient", **SUMMED},
}
RECIPE = Recipe(
    select=Filters(mixed_groups=True), credit=GroupCredit(baseline="mean_std"), rows=RLRows()
)
"""The same for all arms; only `grpo` reads the advantages."""


@dataclass(frozen=True)
class World:
    """Prompts with the strings that are right for each, and the policy they are met with."""

    accepted: list[set[tuple[int, ...]]]
    policy: TabularPolicy

    def accuracy(self) -> float:
        """Exact: the probability of a right string, mean over prompts."""
        import torch

        every = [(at, *one) for at, found in enumerate(self.accepted) for one in sorted(found)]
        with torch.no_grad():
            logp = self.policy.logp(torch.tensor(every), 1).sum(dim=1)
        return float(logp.exp().sum()) / len(self.accepted)

    def rollouts(self, number: int) -> list[Episode]:
        """`SAMPLES` answers to each prompt, scored."""
        import torch

        from agentloop.training.toy_rows import Turn, episode

        drawn = self.policy.sample(
            torch.arange(len(self.accepted)).repeat_interleave(SAMPLES)[:, None], LENGTH
        )
        found = []
        for at, (ids, logp) in enumerate(
            zip(drawn.tokens.tolist(), drawn.logp.tolist(), strict=True)
        ):
            turn = Turn(shown=(ids[0],), ids=tuple(ids[1:]), logprobs=tuple(logp))
            right = float(turn.ids in self.accepted[ids[0]])
            name = f"{number}-{at}"
            found.append(episode(name, f"prompt {ids[0]}", [turn], right, run=str(number)))
        return found


def world(seed: int, rate: float = ONE) -> World:
    """The same for the same seed, sampling included."""
    import torch

    from agentloop.training.toy import Learning, TabularPolicy, whole_prefix

    chance = torch.Generator().manual_seed(seed)
    context, rows = whole_prefix(VOCABULARY, LENGTH)
    table = SPREAD * torch.randn(rows(PROMPTS), VOCABULARY, generator=chance).double()
    accepted = [_strings(chance) for _ in range(PROMPTS)]
    for prompt, found in enumerate(accepted):
        for one in found:
            whole = torch.tensor([[prompt, *one]])
            for place, token in enumerate(one):
                table[context(whole[:, : place + 1]), token] += AHEAD
    learning = Learning("sgd", rate)
    return World(accepted, TabularPolicy(table, learning=learning, context=context, seed=seed))


def _strings(chance: torch.Generator) -> set[tuple[int, ...]]:
    import torch

    found: set[tuple[int, ...]] = set()
    while len(found) < ACCEPTED:
        drawn = torch.randint(VOCABULARY, (LENGTH,), generator=chance)
        found.add(tuple(drawn.tolist()))
    return found


def learn(arm: str, seed: int, iterations: int = ITERATIONS, rate: float = ONE) -> dict[str, float]:
    """One arm: accuracy at its start and end, rollouts used, and how far it went per update."""
    from agentloop.training.replay_settings import ReplaySettings
    from agentloop.training.toy_rows import update

    settings, redact = ReplaySettings.model_validate(ARMS[arm]), Redactor({})
    here, shuffled = world(seed, rate), random.Random(seed)
    stats: list[dict[str, float]] = []
    kept, rollouts, before = 0, 0, here.accuracy()
    for number in range(iterations):
        episodes = here.rollouts(number)
        rows = list(RECIPE.build(episodes, redact=redact).rows)
        rollouts, kept = rollouts + len(episodes), kept + len(rows)
        shuffled.shuffle(rows)  # a group in several parts, or no update would be off-policy
        parts: list[list[Row]] = [rows[at::MINIBATCHES] for at in range(MINIBATCHES)]
        stats += [update(here.policy, part, settings) for part in parts if part]
    return {
        f"{arm}.before": before, f"{arm}": here.accuracy(), f"{arm}.rollouts": rollouts,
        f"{arm}.kept_share": kept / rollouts,
        f"{arm}.abs_log_ratio": statistics.fmean(one["abs_log_ratio"] for one in stats),
        f"{arm}.clip_share": statistics.fmean(one["clip_share"] for one in stats),
    }  # fmt: skip


async def strings(run: CheckRun) -> dict[str, float]:
    """See `compare`."""
    return compare(run.seed)


def compare(seed: int, iterations: int = ITERATIONS) -> dict[str, float]:
    """The three arms from the same start, with the same prompts, seeds and number of rollouts: each
    at its own rate, and (`….one_rate`) all at the same."""
    found: dict[str, float] = {}
    for arm in ARMS:
        found |= learn(arm, seed, iterations, RATES[arm])
        same = learn(arm, seed, iterations)
        found |= {f"{name}.one_rate": value for name, value in same.items()}
    for end in ("", ".one_rate"):
        found[f"nft_minus_rft{end}"] = found[f"nft{end}"] - found[f"rft{end}"]
        found[f"nft_over_grpo{end}"] = found[f"nft{end}"] / found[f"grpo{end}"]
    return found


# --- tier lm: the real model on the real tasks ------------------------------------------------

HELDOUT = 128
CHANGES: dict[str, dict[str, Json]] = {
    "nft": {},
    "rft": {"lanes.policy.settings.negatives": {"weight": 0.0}},
    "grpo": {"lanes.policy.settings.loss": "policy_gradient"},
}


async def phases(run: CheckRun) -> dict[str, float]:
    """One phase per arm, from the same start and the same rollouts (their seeds are those of the
    task): held-out success of what it made, and how varied its samples of the last step are."""
    metrics: dict[str, float] = {}
    for name, changes in CHANGES.items():
        arm = run.beside(name, changes) if changes else run
        report = await arm.report()
        with Archive(arm.home) as archive:
            async with assemble(arm.loaded, archive, arm.options(report.cycle)) as kit:
                first = archive.get(archive.alias_history(kit.alias)[0].bundle, Bundle)
                if name == "nft":
                    metrics["before"] = await solved(kit.bench, first, HELDOUT)
                made = report.lanes["policy"].candidate
                if made is None:
                    raise UsageError(f"the arm `{name}` trained nothing; see its cycle's report")
                metrics[name] = await solved(
                    kit.bench, replace(first, policies={"agent": made}), HELDOUT
                )
                learned = archive.get(made, Policy).metrics
                metrics |= {f"{name}.{key}": learned[f"last_{key}"] for key in ("entropy", "kl")}
    metrics["nft_minus_rft"] = metrics["nft"] - metrics["rft"]
    metrics["nft_minus_grpo"] = metrics["nft"] - metrics["grpo"]
    metrics["entropy_over_rft"] = metrics["nft.entropy"] / max(metrics["rft.entropy"], 1e-9)
    return metrics
