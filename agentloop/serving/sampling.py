"""Logits in, one token per row and its exact log-probability out.

The decision worth knowing: a row's token is the inverse of its cumulative distribution at one
number drawn from the row's own generator, so a seed gives the same token whatever else is in the
batch (up to float rounding: logits differ in the last bits between batch shapes). No vocabulary is
ever sorted: top-p looks at the 64 likeliest tokens and widens only while they do not suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 leave all tokens in."""

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    @property
    def truncated(self) -> bool:
        """Whether some tokens are excluded before sampling."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1)


@dataclass(slots=True)
class Draw:
    """A row's source of randomness."""

    sampling: Sampling
    generator: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        if self.sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.sampling.seed)

    def uniform(self) -> float:
        """The next number in [0, 1)."""
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))


def sample(logits: Tensor, draws: Sequence[Draw]) -> tuple[list[int], list[float]]:
    """logits [rows, vocab] fp32 -> a token and a log-prob (nats) per row.

    The log-prob is under the distribution that was sampled from: after temperature, top-k and
    top-p. For a greedy row it is under the untempered distribution. `logits` is overwritten.
    """
    temperatures = [d.sampling.temperature if d.sampling.temperature > 0 else 1.0 for d in draws]
    if any(t != 1.0 for t in temperatures):
        logits = logits.div_(logits.new_tensor(temperatures)[:, None])
    probs = logits.softmax(-1)
    top = logits.amax(-1)
    lse = top - probs.amax(-1).log()
    greedy = [i for i, d in enumerate(draws) if d.sampling.temperature <= 0]
    cut = [i for i, d in enumerate(draws) if d.sampling.truncated]
    full = sorted(set(range(len(draws))) - set(greedy) - set(cut))
    tokens = torch.zeros(len(draws), dtype=torch.long, device=logits.device)
    if greedy:
        tokens[greedy] = logits[greedy].argmax(-1)
    if full:
        points = [draws[i].uniform() for i in full]
        tokens[full] = _invert(probs if len(full) == len(draws) else probs[full], points)
    logprobs = logits.gather(1, tokens[:, None])[:, 0] - lse
    out, values = tokens.tolist(), logprobs.tolist()
    for i in cut:
        out[i], values[i] = _truncated(probs[i], draws[i])
    return out, values


def _invert(probs: Tensor, points: Sequence[float]) -> Tensor:
    """Inverse cumulative distribution, in two levels: first over blocks, then within one."""
    rows, vocab = probs.shape
    blocks = F.pad(probs, (0, -vocab % _BLOCK)).view(rows, -1, _BLOCK)
    mass = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    goal = probs.new_tensor(points, dtype=torch.float64)[:, None] * mass[:, -1:]
    block = torch.searchsorted(mass, goal, right=True).clamp_(max=mass.shape[1] - 1)
    before = torch.where(block > 0, mass.gather(1, (block - 1).clamp_(min=0)), 0.0)
    inside = blocks[torch.arange(rows, device=probs.device), block[:, 0]].double().cumsum(-1)
    at = torch.searchsorted(inside, goal - before, right=True).clamp_(max=_BLOCK - 1)
    token = (block * _BLOCK + at)[:, 0]
    # Rounding may land on a token of zero mass at the very end; the likeliest one is safe.
    bad = (token >= vocab) | (probs.gather(1, token.clamp(max=vocab - 1)[:, None])[:, 0] <= 0)
    return torch.where(bad, probs.argmax(-1), token)


def _truncated(probs: Tensor, draw: Draw) -> tuple[int, float]:
    """Top-k, then the smallest set of tokens whose mass reaches top-p, renormalised."""
    sampling, vocab = draw.sampling, probs.shape[0]
    limit = min(sampling.top_k or vocab, vocab)
    width = min(limit, 64)
    while True:
        values, ids = probs.topk(width)
        mass = values.double().cumsum(0)
        # top-p refers to what top-k left
        whole = float(mass[-1]) if width == limit and sampling.top_k else 1.0
        if width == limit or float(mass[-1]) >= sampling.top_p:
            break
        width = min(limit, width * 8)
    if sampling.top_k and width < limit:
        whole = float(probs.topk(limit).values.double().sum())
    keep = int(torch.searchsorted(mass, sampling.top_p * whole)) + 1
    mass = mass[: min(keep, width)]
    at = int(torch.searchsorted(mass, draw.uniform() * float(mass[-1]), right=True))
    at = min(at, len(mass) - 1)
    return int(ids[at]), float((values[at].double() / mass[-1]).log())
