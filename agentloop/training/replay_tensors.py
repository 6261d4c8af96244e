"""Rows of a step as tensors, the loss that the settings name, and means over a step's parts.

In: `Sample`s and settings. Out: `Tokens` (rows x time), and `Loss`es of log-probs at them. The
decision worth knowing: the weights of the reduction are made here, once for the whole step, so that
it makes no difference in which parts the step is computed. A toy takes the same way as a language
model, so only torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from agentloop.training.losses import (
    Band,
    Cap,
    Clip,
    Loss,
    Negatives,
    centred_kl,
    covariance_clip,
    fresh,
    masked_kl,
    negative_aware,
    outside,
    policy_gradient,
    weigh,
)
from agentloop.training.replay_rows import Sample
from agentloop.training.replay_settings import ReplaySettings


@dataclass(frozen=True, slots=True)
class Tokens:
    """Aligned tensors, all (rows x time), right-padded."""

    ids: Tensor
    mask: Tensor
    """Where the policy sampled."""
    old: Tensor
    advantages: Tensor
    first: Tensor
    weights: Tensor
    """Of the reduction over the whole step, times the rows' own."""
    correct: Tensor
    share: Tensor
    ref: Tensor
    """The anchor's log-probs; 0 without one."""
    kept: Tensor
    """Where the policy's loss stays (see `losses.covariance_clip`)."""

    def part(self, rows: Sequence[int], start: int, end: int) -> Tokens:
        """Some rows, and of each its tokens `start` to `end`."""
        at = torch.tensor(rows, device=self.ids.device)
        return Tokens(**{name: value[at, start:end] for name, value in self._all().items()})

    def replaced(self, **new: Tensor) -> Tokens:
        """The same with other tensors for some."""
        return Tokens(**(self._all() | new))

    def _all(self) -> dict[str, Tensor]:
        return {one.name: getattr(self, one.name) for one in fields(self)}


def tensors(
    samples: Sequence[Sample], settings: ReplaySettings, dtype: torch.dtype, device: torch.device
) -> Tokens:
    """A step's rows; numbers in `dtype`."""
    width = max(len(each.ids) for each in samples)

    def padded(rows: Sequence[Sequence[Any]], kind: torch.dtype, pad: Any) -> Tensor:
        filled = [[*row, *[pad] * (width - len(row))] for row in rows]
        return torch.tensor(filled, dtype=kind, device=device)

    def alike(values: Sequence[Any], kind: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=kind, device=device).unsqueeze(1).expand(-1, width)

    mask = padded([each.sampled for each in samples], torch.bool, False)
    weights = weigh(mask, settings.reduction, settings.length).to(dtype)
    return Tokens(
        ids=padded([each.ids for each in samples], torch.long, 0),
        mask=mask,
        old=padded([each.old for each in samples], dtype, 0.0),
        advantages=padded([each.advantages for each in samples], dtype, 0.0),
        first=padded([each.first for each in samples], torch.bool, False),
        weights=weights * alike([each.weight for each in samples], dtype),
        correct=alike([each.correct for each in samples], torch.bool),
        share=alike([each.share for each in samples], dtype),
        ref=torch.zeros_like(weights),
        kept=mask,
    )


def policy_loss(logp: Tensor, tokens: Tokens, weights: Tensor, settings: ReplaySettings) -> Loss:
    """The loss that `settings` name, of log-probs (rows x time) at the same tokens."""
    if settings.loss == "negative_aware":
        rule = Negatives(**settings.negatives.model_dump())
        correct, share = tokens.correct[:, 0], tokens.share[:, 0]
        return negative_aware(logp, tokens.old, weights, correct, share, rule)
    clip = clip_of(settings)
    return policy_gradient(logp, tokens.old, tokens.advantages, weights, clip, settings.level)


def part_loss(
    logp: Tensor, entropy: Tensor, tokens: Tokens, *,
    settings: ReplaySettings, whole: Tensor, stats: Means,
) -> Tensor:  # fmt: skip
    """A part's share of the loss of its step: policy, anchor and entropy bonus.

    `logp` and `entropy` (rows x time, with gradient, entropy 0 where unsampled) are at `tokens`;
    `whole` is how many tokens of the step were sampled. What is reported goes into `stats`.
    """
    weights = tokens.weights * tokens.kept
    if settings.stale is not None:
        rows = fresh(logp, tokens.old, weights, settings.stale, tokens.advantages)
        stats.add({"stale_share": 1 - rows.double().mean()}, len(rows))
        weights = weights * rows.unsqueeze(1)
    policy = policy_loss(logp, tokens, weights, settings)
    stats.add(policy.stats, (weights != 0).sum())
    loss = policy.value * settings.weight
    anchor, sampled = settings.anchor, tokens.mask.sum()
    if held(settings) and anchor.estimator != "centred":
        region = tokens.weights * (anchor.weight + anchor.first * tokens.first)
        loss = loss + masked_kl(logp, tokens.ref, region, anchor.estimator).value
    # Wherever the policy is held, what is watched is how far it went on everything it sampled.
    away = masked_kl(logp.detach(), tokens.ref, tokens.mask) if held(settings) else None
    stats.add((away or moved(logp, tokens)).stats, sampled)
    stats.add({"entropy": entropy.detach().sum() / sampled}, sampled)
    if settings.entropy:
        loss = loss - settings.entropy * entropy.sum() / whole
    return loss


def held(settings: ReplaySettings) -> bool:
    """Whether the policy is held to an anchor."""
    return settings.anchor.weight + settings.anchor.first > 0


def clip_of(settings: ReplaySettings) -> Clip | Cap | None:
    """What becomes of a ratio far from 1."""
    given = settings.clip
    if given is None:
        return None
    return Clip(given.low, given.high) if given.most is None else Cap(given.most)


def fined(logp: Tensor, tokens: Tokens, weight: float) -> Tokens:
    """With `weight` times each row's divergence from the anchor, less the mean over the rows of the
    step, taken out of its advantages; `logp` (rows x time) needs no gradient."""
    fines = weight * centred_kl(logp, tokens.ref, tokens.mask).unsqueeze(1)
    return tokens.replaced(advantages=tokens.advantages - fines * tokens.mask)


def silenced(logp: Tensor, tokens: Tokens, settings: ReplaySettings, seed: int) -> Tokens:
    """Without the tokens of a whole step that `settings.covariance` takes out of the policy's
    loss; `logp` (rows x time) needs no gradient, `seed` draws which."""
    given = settings.covariance
    if given is None:
        return tokens
    mask, clip = tokens.mask, clip_of(settings)
    if isinstance(clip, Clip):  # what is clipped is silent already
        mask = mask & ~outside((logp - tokens.old).exp(), tokens.advantages, clip)
    chance = torch.Generator().manual_seed(seed)
    band = Band(given.share, given.low, given.high)
    silent = mask & ~covariance_clip(logp, tokens.advantages, mask, band, chance)
    return tokens.replaced(kept=tokens.mask & ~silent)


def moved(logp: Tensor, tokens: Tokens) -> Loss:
    """How far the policy is from the one that sampled: KL(sampler || policy) from the sampler's own
    tokens, so what became unlikely counts in nats and not in its exponential. Stat: `kl`."""
    return masked_kl(tokens.old, logp.detach(), tokens.mask)


class Means:
    """Means over a step of statistics that its parts give with their counts."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, Any] = {}

    def add(self, stats: Mapping[str, Tensor], count: Any) -> None:
        """Means over `count` tokens (or rows) of one part."""
        for name, value in stats.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * count
            self._counts[name] = self._counts.get(name, 0) + count

    def means(self) -> dict[str, float]:
        """Over all parts."""
        counts = {name: max(1.0, float(count)) for name, count in self._counts.items()}
        return {name: float(total) / counts[name] for name, total in self._sums.items()}
