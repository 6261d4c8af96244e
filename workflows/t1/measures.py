"""What `agentloop check t1` measures.

Goes in: a check run. Comes out: on two tables of logits of which everything is known, where a
leash to a fixed reference stops the policy and one to a moving average does not, and what a fine
for degenerate text is worth; on the real tasks, accuracy against the budget of thinking (tier lm).
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace

from agentloop.checks.rate import solved
from agentloop.checks.run import CheckRun
from agentloop.datasets import advantages
from agentloop.datasets.groups import groups
from agentloop.errors import UsageError
from agentloop.lanes.bench import Bench
from agentloop.records import Bundle, Episode, Json, Policy
from agentloop.rewards.penalties import Patterns
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.workflows.assemble import assemble

# --- tier toy: the leash ----------------------------------------------------------------------

ARMS, START, LEASH, BONUS = 10, 0.0092, 0.3, 1e-3
"""Arms of the bandit; how likely its best one is at first (the others share the rest); weight of
the divergence and of the entropy."""
PULLS, STEPS, RATE, TAIL = 64, 3000, 0.5, 300
"""Samples of a step (the paper's group), steps, learning rate, steps that are averaged in the end
(each has the noise of its samples)."""


async def leash(run: CheckRun) -> dict[str, float]:
    """See `leashes`."""
    return leashes(run.seed)


def leashes(seed: int, steps: int = STEPS) -> dict[str, float]:
    """Probability of the best arm in the end: held to the start, to averages, and not at all."""
    # A reward less the mean of the others is PULLS / (PULLS - 1) times one less the mean of all,
    # which is what the divergence is centred by: the leash is so much weaker.
    tilt = START * math.exp(PULLS / (PULLS - 1) / LEASH)
    closed = tilt / (tilt + 1 - START)
    fixed, _ = bandit(seed, keep=1.0, steps=steps)
    quick, far = bandit(seed, keep=0.95, bonus=BONUS, steps=steps)
    slow, _ = bandit(seed, keep=0.99, bonus=BONUS, steps=steps)
    return {
        "closed_form": closed, "fixed": fixed, "fixed_gap": abs(fixed - closed),
        "ema@0.95": quick, "ema@0.99": slow, "ema": min(quick, slow),
        "ema_minus_fixed": min(quick, slow) - fixed, "kl_to_start@0.95": far,
    }  # fmt: skip


def bandit(
    seed: int, *, keep: float, bonus: float = 0.0, steps: int = STEPS
) -> tuple[float, float]:
    """How likely the best arm is after `steps` updates by sampled pulls, and how far (in nats) the
    policy is from its start by then. A reward is 1 for the best arm; a pull is paid by what the
    others of its group got, less the centred divergence."""
    import torch

    from agentloop.training.anchors import Anchor
    from agentloop.training.replay_settings import ReplaySettings
    from agentloop.training.toy import Learning, TabularPolicy
    from agentloop.training.toy_rows import aligned, learn

    leash: Json = {"weight": LEASH, "estimator": "centred"}
    settings = ReplaySettings.model_validate({"anchor": leash, "entropy": bonus})
    logits = torch.zeros(1, ARMS)
    logits[0, 0] = math.log(START / (1 - START) * (ARMS - 1))
    policy = TabularPolicy(logits, learning=Learning("sgd", RATE), seed=seed)
    anchor = Anchor(policy, keep=keep)
    prompts = torch.zeros(PULLS, 1, dtype=torch.long)
    likely: list[float] = []
    for _ in range(steps):
        drawn = policy.sample(prompts, 1)
        right = (drawn.tokens[:, 1] == 0).double()
        paid = torch.tensor(advantages.normalised(right.tolist(), "leave_one_out"))[:, None]
        learn(policy, aligned(drawn.tokens, drawn.logp, paid, settings), settings, anchor=anchor)
        likely.append(float(policy.table.detach().softmax(-1)[0, 0]))
    kept = policy.table.detach()
    far = float((kept.softmax(-1) * (kept.log_softmax(-1) - logits.log_softmax(-1))).sum())
    return statistics.fmean(likely[-min(TAIL, steps) :]), far


# --- tier toy: the fine -----------------------------------------------------------------------

STYLES = ("clean", "loop", "length", "charset")
CHOICES, LUCK, PLAIN, ROUNDS, GROUP = 8, 0.35, 0.2, 150, 64
"""Possible answers; how often the right one is given in a degenerate text and in a clean one at
first, so that without a fine degeneration pays; updates, and samples of one."""
RULE = Patterns(ngram=3, times=4, longest=60)
WORDS = (
    "we", "add", "two", "numbers", "then", "carry", "one", "and", "check", "it", "by", "taking",
    "away", "what", "is", "left",
)  # fmt: skip
OTHER = ("сложим", "числа", "проверим", "ответ")


async def fine(run: CheckRun) -> dict[str, float]:
    """See `fines`."""
    return fines(run.seed)


def fines(seed: int, rounds: int = ROUNDS) -> dict[str, float]:
    """Shares of the last samples that are degenerate and that are right, with the fine and
    without."""
    with_it, right = degenerate(seed, fined=True, rounds=rounds)
    without, right_without = degenerate(seed, fined=False, rounds=rounds)
    return {
        "degenerate": with_it, "degenerate_unfined": without, "right": right,
        "right_unfined": right_without, "unfined_minus_fined": without - with_it,
    }  # fmt: skip


def degenerate(seed: int, *, fined: bool, rounds: int = ROUNDS) -> tuple[float, float]:
    """A policy chooses a way of writing, then an answer; a text is written and judged. Both are
    learned from the rewards of a group, with the bonus for entropy."""
    import torch

    from agentloop.training.replay_settings import ReplaySettings
    from agentloop.training.toy import Learning, TabularPolicy
    from agentloop.training.toy_rows import aligned, learn

    settings = ReplaySettings(entropy=BONUS)
    first = len(STYLES)  # the row that a text begins at
    table = torch.zeros(first + 1, CHOICES)
    table[first, len(STYLES) :] = -30.0
    for row in range(len(STYLES)):
        share = LUCK if row else PLAIN
        table[row, 0] = math.log(share / (1 - share) * (CHOICES - 1))
    policy = TabularPolicy(table, learning=Learning("sgd", 1.0), seed=seed)
    chance = random.Random(seed)
    prompts = torch.full((GROUP, 1), first)
    last: list[tuple[bool, bool]] = []
    for step in range(rounds):
        drawn = policy.sample(prompts, 2, temperature=1.0)
        picks = [(STYLES[style], answer == 0) for _, style, answer in drawn.tokens.tolist()]
        texts = [written(style, chance) for style, _ in picks]
        rewards = [
            RULE.reward(float(right), text) if fined else float(right)
            for (_, right), text in zip(picks, texts, strict=True)
        ]
        paid = torch.tensor(advantages.normalised(rewards, "leave_one_out"))[:, None]
        paid = paid.expand_as(drawn.logp)
        learn(policy, aligned(drawn.tokens, drawn.logp, paid, settings), settings)
        if step >= rounds - 20:
            last += [(style != "clean", right) for style, right in picks]
    return statistics.fmean(bad for bad, _ in last), statistics.fmean(good for _, good in last)


def written(style: str, chance: random.Random) -> str:
    """A text of this style."""
    words = chance.choices(WORDS, k=24)
    if style == "loop":
        words += words[:4] * 5
    if style == "length":
        words = chance.choices((*WORDS, *map(str, range(60))), k=80)
    if style == "charset":
        words[::3] = chance.choices(OTHER, k=len(words[::3]))
    return " ".join(words)


# --- tier lm: the real model on the real tasks ------------------------------------------------

BUDGETS, HELDOUT = (8, 16, 32, 48, 64), 128


async def thinking(run: CheckRun) -> dict[str, float]:
    """After one cycle: accuracy at each budget before and after it, how well budget and accuracy
    go together, how often the large and the small groups of hard tasks taught anything, and what
    was left of the entropy."""
    report = await run.report()
    metrics: dict[str, float] = {}
    with Archive(run.home) as archive:
        async with assemble(run.loaded, archive, run.options(report.cycle)) as kit:
            bench = kit.bench
            first = archive.get(archive.alias_history(kit.alias)[0].bundle, Bundle)
            name = report.lanes["policy"].candidate
            if name is None:
                raise UsageError("the policy lane trained nothing; see the cycle's report")
            last = replace(first, policies={"agent": name})
            for arm, bundle in {"init": first, "trained": last}.items():
                curve = [await rate(bench, bundle, budget) for budget in BUDGETS]
                metrics |= {f"{arm}@{at}": one for at, one in zip(BUDGETS, curve, strict=True)}
                metrics[f"{arm}.gain"] = curve[-1] - curve[0]
                metrics[f"{arm}.spearman"] = spearman(curve)
            metrics |= informative(archive.episodes(Query(run=report.cycle, purpose="collect")))
            learned = archive.get(name, Policy).metrics
            kept = learned["last_entropy"] / max(learned["entropy_at_start"], 1e-9)
            metrics["entropy_kept"] = kept
    metrics["gain_over_init"] = metrics["trained.gain"] - metrics["init.gain"]
    return metrics


async def rate(bench: Bench, bundle: Bundle, budget: int) -> float:
    """Share of held-out tasks solved, greedily, with `budget` tokens to think."""
    decoding = replace(bench.decoding, max_tokens=budget)
    lent = replace(bench, decoding=decoding)
    return await solved(lent, bundle, HELDOUT, subject=f"budget {budget}")


def informative(episodes: Sequence[Episode], small: int = 8) -> dict[str, float]:
    """Of the tasks that were sampled more than `small` times: how often the later samples together
    are both right and wrong, over how often groups of `small` of them are. The first `small` chose
    the task, for having none right, and say nothing; 0 where no group taught anything."""
    large, few = [], []
    found = [members for members in groups(episodes).values() if len(members) > small]
    for members in found:
        later = sorted((one for one in members if one.sample >= small), key=lambda one: one.sample)
        right = [one.success for one in later]
        large.append(len(set(right)) > 1)
        cuts = [right[at : at + small] for at in range(0, len(right) - small + 1, small)]
        few.append(statistics.fmean(len(set(cut)) > 1 for cut in cuts) if cuts else 0.0)
    ratio = sum(large) / sum(few) if sum(few) else 0.0
    return {"hard_tasks": float(len(found)), "informative_ratio": ratio}


def spearman(values: Sequence[float]) -> float:
    """Rank correlation of `values` with their places; 0 when they are all the same."""
    ranks = [
        statistics.fmean(at for at, one in enumerate(sorted(values)) if one == value)
        for value in values
    ]
    if len(set(ranks)) == 1:
        return 0.0
    return statistics.correlation(ranks, range(len(ranks)))
