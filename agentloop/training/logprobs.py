"""Log-probs of labelled tokens alone, and what two rows begin with computed once.

In: a causal model, and batches as TRL's preference trainers make them. Out: the answer those
trainers ask a model for (`fused_lm_head=True`), with two savings that leave values and gradients
as they are: the vocabulary projection runs at labelled positions only, and of two rows that begin
alike the beginning is computed once, in one sequence whose mask hides each ending from the other.
A model whose layers see a part of the context only would be given that mask in place of its own, so
its rows stay apart.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import FusedCausalLMOutput

from agentloop.training.examples import IGNORED

log = logging.getLogger(__name__)

_VOCABULARY_AT_ONCE = 32768
"""Columns of the projection that are held in memory together (TRL's value)."""
_FIELDS = ("entropy", "mean_logits", "is_top1")
_SCALED = (
    "final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier",
    "logits_scaling", "router_aux_loss_coef",
)  # fmt: skip
"""Settings of architectures whose logits or losses are more than a product; TRL knows them all."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which token of which row stands where: `row`, `at` and `valid` are (sequences x width),
    `mask` is what the model is given, (sequences x width) or (sequences x 1 x width x width)."""

    row: Tensor
    at: Tensor
    valid: Tensor
    mask: Tensor


def apart(mask: Tensor) -> Layout:
    """Every row a sequence of its own; `mask` (rows x time) is 1 at tokens."""
    rows, width = mask.shape
    row = torch.arange(rows, device=mask.device)[:, None].expand(rows, width)
    at = torch.arange(width, device=mask.device)[None].expand(rows, width)
    return Layout(row, at, mask.bool(), mask)


def together(ids: Tensor, mask: Tensor, labels: Tensor) -> Layout:
    """Row i and row i + n of 2n as one sequence: all of the first, then what the second adds.

    Both are right-padded (2n x time). The second's part begins where the two differ, or one token
    before its first label if that is earlier, so that each row predicts its own labels.
    """
    n, width = len(ids) // 2, ids.shape[1]
    first, second = mask.bool().chunk(2)
    length, other = first.sum(1, keepdim=True), second.sum(1, keepdim=True)
    same = ((ids[:n] == ids[n:]) & first & second).cumprod(1).sum(1, keepdim=True)
    labelled = (labels != IGNORED).long()
    begins = torch.where(labelled.any(1, keepdim=True), labelled.argmax(1, keepdim=True), width)
    shared = torch.minimum(same, torch.minimum(*begins.chunk(2)) - 1).clamp(min=0)
    total = length + other - shared
    place = torch.arange(int(total.max()), device=ids.device)[None]
    own = place < length
    index = torch.arange(n, device=ids.device)[:, None]
    row = torch.where(own, index, index + n)
    at = torch.where(own, place, place - length + shared).clamp(max=width - 1)
    valid = place < total
    hidden = (own & (place >= shared))[:, None, :] & ~own[:, :, None]  # the first's own ending
    causal = place[:, None, :] <= place[:, :, None]
    return Layout(row, at, valid, (causal & valid[:, None, :] & ~hidden)[:, None])


def supported(model: Any) -> bool:
    """Whether the head is one product and attention takes a mask of any shape."""
    config = model.config.get_text_config().to_dict()
    plain = not any(config.get(name) for name in _SCALED)
    return plain and model.config._attn_implementation in ("sdpa", "eager")


def sees_all(model: Any) -> bool:
    """Whether every layer attends to the whole context: no sliding window, no chunks."""
    config = model.config.get_text_config().to_dict()
    layers = config.get("layer_types")
    if layers is not None:
        return set(layers) == {"full_attention"}
    windowed = config.get("sliding_window") and config.get("use_sliding_window", True)
    return not windowed and not config.get("attention_chunk_size")


def project_labelled_only(model: Any, *, pairs: bool) -> None:
    """Make `model` (a causal model, without a peft wrapper) answer TRL's preference trainers with
    the savings above; with `pairs`, the second half of a batch holds the partners of the first.

    A model that is not `supported` keeps the answer that TRL gave it.
    """
    if not supported(model):
        return
    if pairs and not sees_all(model):
        pairs = False
        log.warning("not all layers see the whole context, so no beginning of a pair is shared")
    whole = type(model).forward.__get__(model)

    def forward(*args: Any, fused_lm_head: bool = False, **given: Any) -> Any:
        if not fused_lm_head:
            return whole(*args, **given)
        return _answer(model, given["input_ids"], given["attention_mask"], given["labels"], pairs)

    model.forward = forward


def _answer(model: Any, ids: Tensor, mask: Tensor, labels: Tensor, pairs: bool) -> Any:
    """Per-token fields (rows x time - 1), zero where there is no label."""
    layout = together(ids, mask, labels) if pairs else apart(mask)
    attended = layout.mask
    if model.config._attn_implementation == "eager" and attended.dim() == 4:
        lowest = torch.finfo(torch.float32).min
        attended = torch.zeros_like(attended, dtype=torch.float32).masked_fill(~attended, lowest)
    hidden = model.base_model(
        input_ids=ids[layout.row, layout.at],
        attention_mask=attended,
        position_ids=layout.at,
        use_cache=False,
    ).last_hidden_state
    targets = labels[layout.row, layout.at].masked_fill(~layout.valid, IGNORED)[:, 1:]
    predicts = targets != IGNORED
    head = model.get_output_embeddings()
    wanted, labelled = hidden[:, :-1][predicts], targets[predicts]
    if isinstance(head, torch.nn.Linear):
        log_probs, entropy, _, mean_logits, is_top1 = ChunkedLogProbFunction.apply(
            wanted, head.weight, head.bias, labelled,
            1.0, _VOCABULARY_AT_ONCE, None, 1.0, _FIELDS,
        )  # fmt: skip
    else:  # an adapter on the head is not in its `weight`
        log_probs, entropy, mean_logits, is_top1 = _whole(head(wanted).float(), labelled)
    where = (layout.row[:, 1:][predicts], layout.at[:, 1:][predicts] - 1)

    def back(field: Tensor) -> Tensor:
        empty = field.new_zeros(len(ids), ids.shape[1] - 1)
        return empty.index_put(where, field)

    return FusedCausalLMOutput(
        log_probs=back(log_probs),
        entropy=back(entropy),
        mean_logits=back(mean_logits),
        is_top1=back(is_top1),
    )


def _whole(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same fields of logits (labelled x vocabulary) that are there already."""
    logp = logits.log_softmax(-1)
    chosen = logp.gather(-1, targets[:, None])[:, 0]
    entropy = -(logp.exp() * logp).sum(-1).detach()
    best = logits.argmax(-1) == targets
    return chosen, entropy, logits.mean(-1).detach(), best
