"""Losses named by mechanism: tensors (rows x time) in, a scalar with its statistics out.

No model is inside, so a table of logits, a tiny network and a language model run the same code.
The decision worth knowing: every loss is a sum of per-token values times per-token *weights*, and
the weights are made once from the mask (`weigh`). A batch that is computed in parts therefore has
exactly the gradient of the whole, and a change of the reduction cannot hide inside a loss.

Shapes: `logp`, `old`, `ref` are log-probabilities of the sampled tokens, (rows x time). `mask` is
bool (true where the policy sampled: the mean over those tokens is taken) or the float weights that
`weigh` gave for it (then it is summed). What stands at other positions is never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from agentloop.errors import UsageError

Reduction = Literal["token", "sequence", "constant", "sum"]
Level = Literal["token", "sequence"]
Estimator = Literal["k2", "k3"]

_HIGHEST = 10.0
"""Largest log-ratio that is exponentiated in `negative_aware` (its source's bound)."""


@dataclass(frozen=True, slots=True)
class Loss:
    """`value` is a scalar with a gradient; `stats` are detached scalars, means over the sampled
    tokens, so that parts of a batch are joined by their number of sampled tokens."""

    value: Tensor
    stats: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Clip:
    """The ratio is held in [1 - low, 1 + high] where leaving it would pay (Schulman et al. 2017,
    PPO); a higher `high` than `low` is DAPO's (Yu et al. 2025), whose values are the defaults."""

    low: float = 0.2
    high: float = 0.28


@dataclass(frozen=True, slots=True)
class Cap:
    """Truncated importance sampling (Ionides 2008): the ratio, at most `most`, is a constant weight
    of the gradient. Nothing is clipped away, so rows that are far off still teach."""

    most: float = 2.0


@dataclass(frozen=True, slots=True)
class Negatives:
    """How `negative_aware` weighs wrong answers.

    `weight` multiplies their loss (1 as published, 0 is imitation of the right ones alone), `floor`
    is the least value of the implicit negative policy's ratio, `normalise` gives each row the
    weight 1 (0), 1 - p (1) or sqrt((1 - p) / p) (2), where p is its group's share of right ones.
    """

    weight: float = 1.0
    floor: float = 1.0
    normalise: Literal[0, 1, 2] = 1


@dataclass(frozen=True, slots=True)
class Band:
    """Which tokens `covariance_clip` may silence: a share of all, with a covariance in (low, high).

    The defaults are those of Cui et al. 2025 (Clip-Cov) as SPEAR's scripts set them.
    """

    share: float = 0.02
    low: float = 1.0
    high: float = 40.0


def weigh(mask: Tensor, how: Reduction = "token", length: float = 1.0) -> Tensor:
    """Weights (rows x time) by which per-token values are added; 0 where `mask` is false.

    `token`: every token alike, they sum to 1 (DAPO). `sequence`: every row alike, then its tokens
    (GRPO, Shao et al. 2024). `constant`: 1 / (rows x `length`), so that long rows do not count
    less per token (Dr. GRPO, Liu et al. 2025). `sum`: 1 / `length`. Raises `UsageError` for
    another name or a length that is not positive.
    """
    if not length > 0:
        raise UsageError(f"`length` is {length}; give a positive number")
    sampled = mask.bool()
    ones = sampled.double()  # cast to the values' precision where it is used
    if how == "token":
        return ones / ones.sum().clamp(min=1)
    if how == "sequence":
        return ones / ones.sum(dim=1, keepdim=True).clamp(min=1) / len(ones)
    if how == "constant":
        return ones / (len(ones) * length)
    if how == "sum":
        return ones / length
    raise UsageError(f"unknown reduction `{how}`; known: token, sequence, constant, sum")


def reduce(
    per_token: Tensor, mask: Tensor, how: Reduction = "token", length: float = 1.0
) -> Tensor:
    """The scalar that `weigh` makes of (rows x time) values."""
    weights = weigh(mask, how, length).to(per_token.dtype)
    return _added(per_token, weights)


def policy_gradient(
    logp: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: Clip | Cap | None = Clip(),
    level: Level = "token",
) -> Loss:
    """The surrogate -ratio x advantage, ratio = exp(logp - old), to be minimised.

    `old` are the log-probs the tokens were sampled with; `advantages` (rows) or (rows x time).
    `clip` is `Clip` (PPO), `Cap` (truncated importance sampling) or nothing (the plain importance
    weighted gradient). `level` `sequence` uses one ratio for a row, the geometric mean of its
    tokens' (GSPO, Zheng et al. 2025). Stats: `ratio`, `abs_log_ratio`, `clip_share`.
    """
    weights = _weights(mask, logp)
    advantages = _per_token(advantages, logp)
    log_ratio = _log_ratio(logp, old, weights)
    raw = log_ratio.detach()
    if level == "sequence":
        log_ratio = row_mean(log_ratio, weights).unsqueeze(1).expand_as(logp)
    ratio = log_ratio.exp()
    clipped = torch.zeros_like(weights, dtype=torch.bool)
    if isinstance(clip, Cap):
        clipped = ratio > clip.most
        gain = ratio.detach().clamp(max=clip.most) * advantages * _read(logp, weights)
    elif clip is not None:
        clipped = outside(ratio, advantages, clip)
        held = ratio.clamp(1 - clip.low, 1 + clip.high)
        gain = torch.min(ratio * advantages, held * advantages)
    else:
        gain = ratio * advantages
    stats = _ratio_stats(raw, weights) | {"clip_share": _mean(clipped, weights)}
    return Loss(_added(-gain, weights), stats)


def outside(ratio: Tensor, advantages: Tensor, clip: Clip) -> Tensor:
    """Where `Clip` stops the gradient: the ratio has left the range in the direction that pays."""
    low = (ratio < 1 - clip.low) & (advantages < 0)
    return low | ((ratio > 1 + clip.high) & (advantages > 0))


def fresh(
    logp: Tensor, old: Tensor, mask: Tensor, limit: float, advantages: Tensor | None = None
) -> Tensor:
    """Which rows (bool, rows) are near enough to the policy to learn from: the mean of
    old - logp over their tokens is at most `limit`, in nats.

    With `advantages`, only rows with a negative mean advantage are left out (the off-policy
    sequence mask of DeepSeek-V3.2: what should be made likelier is safe however unlikely it is).
    """
    weights = _weights(mask, logp)
    near = row_mean(-_log_ratio(logp.detach(), old, weights), weights) <= limit
    if advantages is None:
        return near
    return near | (row_mean(_per_token(advantages, logp), weights) >= 0)


def negative_aware(
    logp: Tensor,
    old: Tensor,
    mask: Tensor,
    correct: Tensor,
    share: Tensor,
    rule: Negatives = Negatives(),
) -> Loss:
    """Maximum likelihood on right *and* wrong answers (Chen et al. 2025, NFT).

    The old policy is the mixture p x right + (1 - p) x wrong, so the wrong part's ratio is
    (1 - p R) / (1 - p) with R = exp(logp - old): right rows lose -log R, wrong rows -log of that
    ratio. Its value is held at `rule.floor` or more while the gradient stays that of the unheld
    one (straight-through), so it is finite wherever R is. The gradient's coefficient on logp is -w
    for right rows and + w p R / (1 - p) / max((1 - p R) / (1 - p), floor) for wrong ones.

    `correct` (rows) bool; `share` (rows) in (0, 1), held in [0.02, 0.98]. Raises `UsageError` for
    a share of 0 or 1: such a group teaches nothing and is to be left out. Stats: `ratio`,
    `abs_log_ratio`, `clip_share` (held at the floor).
    """
    if not bool(((share > 0) & (share < 1)).all()):
        raise UsageError("a group that is all right or all wrong has no place here; leave it out")
    weights = _weights(mask, logp)
    p = share.to(logp.dtype).clamp(0.02, 0.98).unsqueeze(1)
    right = correct.bool().unsqueeze(1).expand_as(logp)
    log_ratio = _log_ratio(logp, old, weights)
    bounded = log_ratio.clamp(max=_HIGHEST)
    wrong_ratio = (1 - p * bounded.exp()) / (1 - p)
    held = wrong_ratio + (wrong_ratio.clamp(min=rule.floor) - wrong_ratio).detach()
    per_token = torch.where(right, -bounded, -held.log() * rule.weight)
    row = {0: torch.ones_like(p), 1: 1 - p, 2: ((1 - p) / p).sqrt()}[rule.normalise]
    floored = (wrong_ratio < rule.floor) & ~right
    stats = _ratio_stats(log_ratio.detach(), weights) | {"clip_share": _mean(floored, weights)}
    return Loss(_added(per_token * row, weights), stats)


def covariance_clip(
    logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    band: Band = Band(),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Where the loss stays (bool, rows x time): all of `mask` but a random few of the tokens whose
    covariance (A - mean A)(logp - mean logp) lies in the band; those are what lowers entropy
    (Cui et al. 2025, Clip-Cov). At most `band.share` of the sampled tokens are silenced, but one
    where that is less than one (as in verl's implementation); none with a share of 0.

    Give a mask without the tokens that a `Clip` has silenced already (`outside`): they are then
    not chosen, though they do not count in the share either.
    """
    sampled = mask.bool()
    weights = weigh(sampled).to(logp.dtype)
    values, gains = logp.detach(), _per_token(advantages, logp)
    covariance = (gains - _mean(gains, weights)) * (values - _mean(values, weights))
    inside = (sampled & (covariance > band.low) & (covariance < band.high)).nonzero()
    most = max(1, int(band.share * int(sampled.sum()))) if band.share else 0
    chosen = inside[torch.randperm(len(inside), generator=generator)[:most].to(inside.device)]
    keep = sampled.clone()
    keep[chosen[:, 0], chosen[:, 1]] = False
    return keep


def implicit_rewards(
    logp: Tensor, old: Tensor, steps: Tensor, count: int, beta: float = 0.05
) -> Tensor:
    """beta x (logp - old) added up per step, (rows x `count`): what a model trained on preferences
    between trajectories pays for each step (Yuan et al. 2024; Rafailov et al. 2024).

    `steps` (rows x time) numbers the step of each token from 0, and is -1 where nothing was
    sampled. The gradient reaches `logp`; detach before using the result as a reward.
    """
    inside = steps >= 0
    each = beta * torch.where(inside, logp - old, torch.zeros_like(logp))
    return each.new_zeros(len(each), count).scatter_add(1, steps.clamp(min=0), each)


def pair_logistic(good: Tensor, bad: Tensor) -> Loss:
    """Mean of -log sigmoid(good - bad) over pairs of scores, (pairs) each (Bradley & Terry 1952).

    The gradient reaches both. Stat: `accuracy`, the share of pairs in the right order. Raises
    `UsageError` without a pair.
    """
    if good.shape != bad.shape or not good.numel():
        raise UsageError(
            f"pairs of scores need two lists of one length, not {good.shape}, {bad.shape}"
        )
    return Loss(
        -logsigmoid(good - bad).mean(), {"accuracy": (good > bad).to(good.dtype).mean().detach()}
    )


def success_pairs(good: Sequence[bool], groups: Sequence[str]) -> list[tuple[int, int]]:
    """Indices (good, bad) of every success with every failure of one group; a group that is all
    one or all the other has none."""
    return [
        (i, j)
        for i, first in enumerate(good)
        for j, second in enumerate(good)
        if first and not second and groups[i] == groups[j]
    ]


def listwise(scores: Tensor, good: Tensor) -> Loss:
    """Mean of -log sigmoid(score of a good - score of a bad) over all such pairs of a list, then
    over lists (Yang et al. 2024, Qwen2.5-Math, equation 1: the factor is 1 / (k (n - k))).

    `scores` and `good` (lists x n) or (n). Raises `UsageError` for a list without both kinds.
    Stat: `accuracy`.
    """
    scores, good = torch.atleast_2d(scores), torch.atleast_2d(good.bool())
    valid = good.unsqueeze(2) & ~good.unsqueeze(1)  # lists x good x bad
    count = valid.sum(dim=(1, 2))
    if not bool((count > 0).all()):
        raise UsageError("a list of all good or all bad answers has no pair; leave it out")
    gap = scores.unsqueeze(2) - scores.unsqueeze(1)
    each = torch.where(valid, -logsigmoid(gap), torch.zeros_like(gap)).sum(dim=(1, 2)) / count
    ordered = ((gap > 0) & valid).sum(dim=(1, 2)) / count
    return Loss(each.mean(), {"accuracy": ordered.mean().detach()})


def masked_kl(logp: Tensor, ref: Tensor, mask: Tensor, estimator: Estimator = "k2") -> Loss:
    """Divergence from `ref` on the tokens of `mask` alone, from the sampled tokens.

    `k2` is (logp - ref)^2 / 2, whose gradient on the policy's own samples is that of
    KL(policy || ref); `k3` is exp(ref - logp) - (ref - logp) - 1, as TRL has it, whose value is
    unbiased on the policy's own samples and whose gradient is that of KL(ref || policy) (Schulman
    2020; Tang & Munos 2025). `ref` gets no gradient. Stat: `kl`, the mean of k3.
    """
    weights = _weights(mask, logp)
    gap = -_log_ratio(logp, ref.detach(), weights)
    k3 = gap.exp() - gap - 1
    return Loss(
        _added(gap.square() / 2 if estimator == "k2" else k3, weights),
        {"kl": _mean(k3.detach(), weights)},
    )


def full_kl(logits: Tensor, ref_logits: Tensor, mask: Tensor) -> Loss:
    """KL(policy || reference) over the whole vocabulary, exact; logits (rows x time x vocabulary).

    Stat: `kl`, its mean over the sampled tokens.
    """
    logp, ref = logits.log_softmax(-1), ref_logits.detach().log_softmax(-1)
    each = (logp.exp() * (logp - ref)).sum(-1)
    weights = _weights(mask, each)
    return Loss(_added(each, weights), {"kl": _mean(each.detach(), weights)})


def centred_kl(logp: Tensor, ref: Tensor, mask: Tensor) -> Tensor:
    """Each row's summed logp - ref minus the mean over the rows, (rows), detached: subtracted from
    the rewards it holds the policy near `ref` without paying or fining the batch as a whole."""
    weights = _weights(mask, logp)
    rows = _log_ratio(logp.detach(), ref, weights).sum(dim=1)
    return rows - rows.mean()


def entropy(logits: Tensor, mask: Tensor) -> Loss:
    """Entropy in nats of the next-token distributions, logits (rows x time x vocabulary).

    Subtract it from a loss, times a coefficient, as a bonus. Stat: `entropy`, the mean.
    """
    each = token_entropy(logits)
    weights = _weights(mask, each)
    return Loss(_added(each, weights), {"entropy": _mean(each.detach(), weights)})


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each distribution, (... x vocabulary) to (...)."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the sampled tokens of each row, (rows); 0 for a row without any."""
    sampled = mask != 0
    total = torch.where(sampled, values, torch.zeros_like(values)).sum(dim=1)
    return total / sampled.sum(dim=1).clamp(min=1)


def _weights(mask: Tensor, like: Tensor) -> Tensor:
    """`mask` as weights: given ones as they are, a bool mask as the mean over its tokens."""
    return (mask if mask.is_floating_point() else weigh(mask)).to(like.dtype)


def _read(values: Tensor, weights: Tensor) -> Tensor:
    """`values` where something was sampled, else 0: padding may hold anything, NaN included."""
    return torch.where(weights != 0, values, torch.zeros_like(values))


def _log_ratio(logp: Tensor, old: Tensor, weights: Tensor) -> Tensor:
    return _read(logp, weights) - _read(old.to(logp.dtype), weights)


def _per_token(advantages: Tensor, like: Tensor) -> Tensor:
    whole = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
    return whole.to(like.dtype).expand_as(like).detach()


def _added(values: Tensor, weights: Tensor) -> Tensor:
    return (_read(values, weights) * weights).sum()


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean over the sampled tokens, whatever their weights."""
    sampled = (weights != 0).to(weights.dtype)
    return (_read(values.to(weights.dtype), weights)).sum() / sampled.sum().clamp(min=1)


def _ratio_stats(log_ratio: Tensor, weights: Tensor) -> dict[str, Tensor]:
    return {
        "ratio": _mean(log_ratio.exp(), weights),
        "abs_log_ratio": _mean(log_ratio.abs(), weights),
    }
