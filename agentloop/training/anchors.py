"""What a policy is held to: weights that stay, that follow slowly, or that are renewed by stages.

In: a module whose learned weights are to be anchored (an adapter's only, when only they learn).
Out: a copy of those weights, put in place for as long as the reference's log-probs are computed.
The decision worth knowing: one copy and one number cover all three. `keep` = 1 is a fixed
reference, less is an exponential moving average, and `renew` starts the next stage's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from agentloop.errors import TrainingError, UsageError


class Anchor:
    """A reference for `module`: reference <- keep x reference + (1 - keep) x policy at each
    `follow` (Tarvainen & Valpola 2017; 0.99 to 0.999 for a policy's reference)."""

    def __init__(self, module: nn.Module, keep: float = 1.0) -> None:
        if not 0 <= keep <= 1:
            raise UsageError(f"an anchor that keeps {keep} of itself; give a number from 0 to 1")
        self.module, self.keep = module, keep
        self.kept: dict[str, Tensor] = {}
        self.renew()

    def renew(self) -> None:
        """Take the policy as it is: the start of a stage."""
        self.kept = {name: weight.detach().clone() for name, weight in self._learned()}

    def follow(self) -> None:
        """One step after the policy; a fixed anchor stays."""
        if self.keep == 1:
            return
        with torch.no_grad():
            for name, weight in self._learned():
                self.kept[name].lerp_(weight, 1 - self.keep)

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from the reference that another process kept. Raises `TrainingError` when it is of
        other weights."""
        shapes = {name: one.shape for name, one in self.kept.items()}
        if {name: one.shape for name, one in weights.items()} != shapes:
            raise TrainingError("the anchor that was kept is of other weights; begin a new one")
        self.kept = {name: weights[name].to(one) for name, one in self.kept.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the module *is* the reference; nothing may be learned meanwhile."""
        own = {name: weight.data for name, weight in self._learned()}
        try:
            for name, weight in self._learned():
                weight.data = self.kept[name]
            yield
        finally:
            for name, weight in self._learned():
                weight.data = own[name]

    def distance(self) -> float:
        """The Euclidean distance between reference and policy."""
        gaps = [
            (weight.detach() - self.kept[name]).square().sum() for name, weight in self._learned()
        ]
        return float(torch.stack(gaps).sum().sqrt())

    def _learned(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, one) for name, one in self.module.named_parameters() if one.requires_grad)
