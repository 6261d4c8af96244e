"""From a causal model to the log-probs of chosen tokens, without the logits of all the others.

In: a model and its inputs, with or without remembered keys and values. Out: log-probs and entropies
at chosen positions, with gradient. Imports torch and TRL's kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction

from agentloop.training.logprobs import supported

_VOCABULARY_AT_ONCE = 32768
"""Columns of the projection that are held in GPU memory together (TRL's value)."""


class Projection:
    """From a causal model's inputs to log-probs and entropies of chosen tokens, in float32 at
    least, at `temperature`; the vocabulary projection runs at their positions only.

    `tiled`, for a GPU, projects in tiles that are computed again for the gradient: all of a
    vocabulary's logits at once would be what fills the memory. A head that is more than a product
    (scaled or capped logits) is left to the model, which projects every position.
    """

    def __init__(self, base: Any, temperature: float, *, tiled: bool) -> None:
        self.base, self.temperature, self.tiled = base, temperature, tiled
        self.plain = supported(base)

    def __call__(
        self, given: Mapping[str, Any], where: Tensor, targets: Tensor, *, bonus: bool
    ) -> tuple[Tensor, Tensor]:
        """Log-probs of `targets` and entropies at the positions `where` (rows x time, bool), one
        each; entropies carry a gradient with `bonus` only."""
        if not self.plain:
            return self._of(self.base(**given).logits[where], targets, bonus)
        hidden = self.base.base_model(**given).last_hidden_state[where]
        head = self.base.get_output_embeddings()
        # An adapter on the head is not in its `weight`: only calling it counts (and teaches) both.
        if not self.tiled or not isinstance(head, torch.nn.Linear):
            return self._of(head(hidden), targets, bonus)
        logp, entropy, *_ = ChunkedLogProbFunction.apply(
            hidden, head.weight, head.bias, targets, self.temperature, _VOCABULARY_AT_ONCE, None,
            1.0, ("entropy",),
        )  # fmt: skip
        return logp, entropy if bonus else entropy.detach()

    def _of(self, logits: Tensor, targets: Tensor, bonus: bool) -> tuple[Tensor, Tensor]:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        logp = (wide / self.temperature).log_softmax(-1)
        spread = logp if bonus else logp.detach()
        entropy = -(spread.exp() * spread).sum(-1)
        return logp.gather(-1, targets.unsqueeze(-1)).squeeze(-1), entropy
