"""`SFTTrainer` on rows that are tokens already: no token is computed or stored twice for nothing.

In: batches of ids, labels and row weights. Out: the gradient of the weighted mean loss of sampled
tokens. Three savings leave the gradient as it is: the vocabulary projection runs at labelled
positions only, what all rows of a batch begin with is computed once, and batches hold rows of like
length. A batch that would not fit in memory is computed in parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy, pad
from transformers import DynamicCache
from trl import SFTTrainer

from agentloop.training.examples import IGNORED, length_bucketed

_WORTH_SHARING = 8
"""Tokens; below, a second call of the model costs more than it saves."""


class RowsTrainer(SFTTrainer):  # type: ignore[misc]
    """Trains on columns `input_ids`, `labels` (-100: no loss) and `weight`, collated by `collate`;
    `tokens` counts what the rows seen so far hold."""

    tokens = 0
    share_prefix = True
    tokens_at_once = 384

    def training_step(
        self, model: Any, inputs: dict[str, torch.Tensor], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Gradient of one batch, computed in parts that fit `tokens_at_once`."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        self.tokens += int(inputs["attention_mask"].sum())
        rows, width = inputs["input_ids"].shape
        shared = self._shared(inputs)
        size = max(1, (self.tokens_at_once - shared) // (width - shared))
        whole = _mass(inputs)
        losses = []
        for start in range(0, rows, size):
            part = {name: tensor[start : start + size] for name, tensor in inputs.items()}
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, part) * (_mass(part) / whole)
            self.accelerator.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _shared(self, inputs: dict[str, torch.Tensor]) -> int:
        return shared_prefix(inputs["input_ids"], inputs["labels"]) if self.share_prefix else 0

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Weighted mean negative log-likelihood of the sampled tokens of the batch."""
        ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
        shared = self._shared(inputs)
        cache = None
        if shared:
            # One forward for what all rows begin with; its gradient is the sum over the rows.
            cache = DynamicCache(config=model.config)
            model(
                input_ids=ids[:1, :shared], past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            cache.batch_repeat_interleave(len(ids))
        targets = labels[:, shared + 1 :]
        predicts = pad(targets != IGNORED, (0, 1))  # position t predicts token t + 1
        with _projecting_only(self.model.get_output_embeddings(), predicts):
            logits = model(
                input_ids=ids[:, shared:],
                attention_mask=mask,
                past_key_values=cache,
                use_cache=cache is not None,
            ).logits
        losses = cross_entropy(logits.float(), targets[predicts[:, :-1]], reduction="none")
        weights = inputs["weight"][:, None].expand_as(predicts)[predicts]
        return (losses * weights).sum() / weights.sum()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
        return Bucketed(lengths, self.args.per_device_train_batch_size, self.args.seed)


class Bucketed(torch.utils.data.Sampler[int]):
    """A new length-bucketed order in each epoch."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        self.seed += 1
        return iter(length_bucketed(self.lengths, self.batch_size, self.seed))


def _mass(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the weights of the tokens with a loss."""
    predicted = (inputs["labels"][:, 1:] != IGNORED).sum(dim=1)
    return (predicted * inputs["weight"]).sum()


def shared_prefix(ids: torch.Tensor, labels: torch.Tensor) -> int:
    """How many leading tokens all rows share before any of them predicts a label."""
    differs = (ids != ids[:1]).any(dim=0).nonzero()
    labelled = (labels != IGNORED).any(dim=0).nonzero()
    same = int(differs[0]) if len(differs) else ids.shape[1]
    shared = min(same, int(labelled[0]) - 1)
    return shared if len(ids) > 1 and shared >= _WORTH_SHARING else 0


@contextmanager
def _projecting_only(head: torch.nn.Module, positions: torch.Tensor) -> Iterator[None]:
    """Within, `head` sees the hidden states at `positions` (batch x time, bool) only, so logits are
    (labelled x vocabulary); what a model does to its logits afterwards is elementwise."""
    handle = head.register_forward_pre_hook(lambda _, args: (args[0][positions], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def collate(batch: Sequence[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded (batch x time) ids, mask and labels; one weight per row."""
    width = max(len(row["input_ids"]) for row in batch)
    missing = [width - len(row["input_ids"]) for row in batch]
    pairs = list(zip(batch, missing, strict=True))
    return {
        "input_ids": torch.tensor([[*row["input_ids"], *[pad] * n] for row, n in pairs]),
        "attention_mask": torch.tensor([[1] * (width - n) + [0] * n for n in missing]),
        "labels": torch.tensor([[*row["labels"], *[IGNORED] * n] for row, n in pairs]),
        "weight": torch.tensor([row["weight"] for row in batch], dtype=torch.float32),
    }
