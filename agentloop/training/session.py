"""One round of an online run: learning from stored rows with an optimizer that goes on.

In: a job like `replay`'s, and the directory of the optimizer's state after the round before. Out:
the adapter, and beside it `<out>.optimizer/` with the state for the next round, the moving average
that the policy is held to included. The decision worth
knowing: a round is a process of its own and not a trainer that stays up. What a kill could cost is
then one round, because everything a round begins with lies on the disk; the trainer's memory is
free while the model is served; deadline, guards and causes of death are those of every job. It
costs the start of a process per round. Imports torch: loaded by the worker process alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from agentloop.errors import TrainingError
from agentloop.files import new_directory, read_manifest, write_manifest
from agentloop.records import TrainingJob, TrainingResult
from agentloop.training.anchors import Anchor
from agentloop.training.fit import check_finite
from agentloop.training.replay import ReplayTrainer, learn
from agentloop.training.replay_rows import Sample
from agentloop.training.session_settings import SessionSettings
from agentloop.training.settings import settings_of

STATE, AVERAGE = "optimizer.safetensors", "anchor.safetensors"


def train(job: TrainingJob) -> TrainingResult:
    """See `replay.train`; the optimizer goes on from `settings.optimizer`."""
    settings = settings_of(SessionSettings, job.settings)
    before = Path(settings.optimizer) if settings.optimizer else None
    make = partial(SessionTrainer, before=before, after=Path(f"{job.out}.optimizer"))
    return learn(job, settings, make)


class SessionTrainer(ReplayTrainer):
    """Reads the optimizer's state `before` the first step and writes it `after` the last."""

    def __init__(
        self, samples: Sequence[Sample], settings: SessionSettings, *,
        before: Path | None, after: Path, **given: Any,
    ) -> None:  # fmt: skip
        self.before, self.after = before, after
        super().__init__(samples, settings, **given)

    def create_optimizer(self, *given: Any) -> Any:
        """Raises `StoreError` when the state was damaged, `TrainingError` when it is of other
        weights."""
        optimizer = super().create_optimizer(*given)
        if self.before is not None:
            restore(self.model, optimizer, self.before)
        return optimizer

    def _average(self) -> Anchor:
        """Goes on from the round before, after whose last step it has yet to follow the policy."""
        anchor = super()._average()
        if self.before is not None and (self.before / AVERAGE).is_file():
            anchor.take(load_file(self.before / AVERAGE))
            anchor.follow()
        return anchor

    def train(self, *given: Any, **named: Any) -> Any:
        """Written before the adapter is published: no round is finished without its state. Raises
        `TrainingError`, and writes nothing, when a learned weight is not finite."""
        done = super().train(*given, **named)
        check_finite(self.model)
        keep(self.model, self.optimizer, self.after, self._anchor)
        return done


def keep(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    directory: Path,
    anchor: Anchor | None = None,
) -> None:
    """Write the state by the names of the weights; one that a killed run left is replaced."""
    names = {weight: name for name, weight in model.named_parameters()}
    tensors = {
        f"{names[weight]}/{key}": value.detach().cpu().contiguous()
        for weight, values in optimizer.state.items()
        for key, value in values.items()
        if isinstance(value, torch.Tensor)
    }
    shutil.rmtree(directory, ignore_errors=True)
    with new_directory(directory) as draft:
        save_file(tensors, draft / STATE)
        if anchor is not None:
            kept = {name: value.cpu().contiguous() for name, value in anchor.kept.items()}
            save_file(kept, draft / AVERAGE)
        write_manifest(draft, {})


def restore(model: torch.nn.Module, optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """Read it back into `optimizer`, whose weights must have the same names and shapes."""
    read_manifest(directory)
    weights = {name: one for name, one in model.named_parameters() if one.requires_grad}
    for key, value in load_file(directory / STATE).items():
        name, _, part = key.rpartition("/")
        weight = weights.get(name)
        if weight is None or (value.dim() and value.shape != weight.shape):
            raise TrainingError(f"the optimizer's state in `{directory}` is of other weights")
        # the count of steps is a plain number to some kernels, and stays where they want it
        device = weight.device if value.dim() else value.device
        optimizer.state[weight][part] = value.to(device)
