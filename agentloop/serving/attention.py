"""Cascade attention: rotated q/k/v of a packed batch in, attention outputs out.

Rows that share a prompt segment attend to ONE copy of its KV with one product per KV head (queries
of a group of heads are stacked as rows, so grouped-query attention needs no repeated KV). Each row
attends to its own recent tokens in a padded slot. The partial results are exact when merged by the
log-sum-exp of their scores: softmax over the union = sum of parts weighted by exp(lse - lse_total).

The decision worth knowing: log-sum-exp is derived from the fused softmax as
max(score) - log(max(probability)), which is several times quicker on CPU than `logsumexp`.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from agentloop.serving.model import Shape


class Slots:
    """KV of decoding rows: [layers, 2, rows, kv heads, capacity, D].

    Reserved at once but, on CPU, only the pages that rows really reach become resident.
    """

    def __init__(
        self, shape: Shape, rows: int, capacity: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        size = (shape.layers, 2, rows, shape.kv_heads, capacity, shape.head_dim)
        self.capacity = capacity
        self.token_bytes = shape.layers * 2 * shape.kv_heads * shape.head_dim * dtype.itemsize
        if device.type == "cpu":
            raw = torch.frombuffer(_reserve(prod(size) * dtype.itemsize), dtype=torch.uint8)
            self.kv = raw.view(dtype).view(size)
        else:
            self.kv = torch.zeros(size, dtype=dtype, device=device)

    def write(self, row: int, start: int, kv: Tensor) -> None:
        """Copy a segment [layers, 2, kv heads, n, D] to `row` from `start` on."""
        self.kv[:, :, row, :, start : start + kv.shape[3]] = kv

    def read(self, row: int, start: int, stop: int) -> Tensor:
        """A copy of tokens `start` to `stop` of `row`."""
        return self.kv[:, :, row, :, start:stop].contiguous().clone()

    def move(self, source: int, target: int, length: int) -> None:
        """Let row `target` be what row `source` was."""
        self.kv[:, :, target, :, :length] = self.kv[:, :, source, :, :length]


def _reserve(size: int) -> mmap.mmap:
    """Zeroed memory that becomes resident 4 KiB at a time: with huge pages the first token of a few
    neighbouring rows would already make all their slots resident."""
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        except OSError as error:  # a kernel without huge pages has none to refuse
            if error.errno != errno.EINVAL:
                raise
    return memory


@dataclass(slots=True)
class Segment:
    """A shared segment: who attends to it (`rows`, None for all), at which cascade level."""

    kv: Tensor
    rows: Tensor | None
    level: int


@dataclass(slots=True)
class Chunk:
    """New prompt tokens of one segment: packed rows `start` to `stop`, KV written to `out`."""

    start: int
    stop: int
    past: list[Tensor]
    out: Tensor
    mask: Tensor


def causal_mask(tokens: int, past: int, group: int, *, like: Tensor) -> Tensor:
    """Additive [group * tokens, past + tokens]: everything before, and self up to the diagonal.
    `like` gives dtype and device."""
    mask = like.new_full((tokens, tokens), float("-inf")).triu_(1)
    return F.pad(mask, (past, 0)).repeat(group, 1)


class DecodePlan:
    """Attention of the decoding rows; rebuilt only when rows or segments change."""

    def __init__(self, shape: Shape, slots: Slots, rows: int, segments: Sequence[Segment]) -> None:
        self.shape, self.slots, self.rows, self.segments = shape, slots, rows, list(segments)
        kv = slots.kv
        self.group = shape.heads // shape.kv_heads
        self.scale = shape.head_dim**-0.5
        self.index = torch.arange(rows, device=kv.device)
        levels = 1 + max((s.level for s in segments), default=-1)
        size = (levels + 1, rows, shape.kv_heads, self.group)
        # Level 0..n-1 are shared segments, the last is the row's own slot. A row without a segment
        # at some level keeps -inf there and so gives it no weight.
        self.out = torch.zeros((*size, shape.head_dim), dtype=kv.dtype, device=kv.device)
        self.lse = torch.full(size, float("-inf"), dtype=kv.dtype, device=kv.device)
        self.lengths = self.index
        self.span = 0
        self.mask = self.out

    def advance(self, lengths: Sequence[int]) -> None:
        """Set how many tokens each slot holds before this step's token."""
        self.lengths = torch.tensor(lengths, device=self.index.device)
        self.span = max(lengths) + 1
        steps = torch.arange(self.span, device=self.index.device)
        hidden = steps[None] > self.lengths[:, None]
        mask = torch.zeros(hidden.shape, dtype=self.slots.kv.dtype, device=self.index.device)
        self.mask = mask.masked_fill_(hidden, float("-inf"))[:, None, None]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [rows, heads, D] -> [rows, heads * D]; k and v are stored first."""
        keys, values = self.slots.kv[layer, 0, : self.rows], self.slots.kv[layer, 1, : self.rows]
        keys[self.index, :, self.lengths] = k
        values[self.index, :, self.lengths] = v
        q = (q * self.scale).unflatten(1, (self.shape.kv_heads, self.group))
        for segment in self.segments:
            self._shared(segment, layer, q)
        scores = torch.matmul(q, keys[:, :, : self.span].transpose(2, 3)).add_(self.mask)
        weights = scores.softmax(-1)
        own = torch.matmul(weights, values[:, :, : self.span])
        if not self.segments:
            return own.flatten(1)
        self.out[-1] = own
        self.lse[-1] = _lse(scores, weights)
        share = self.lse.softmax(0).unsqueeze(-1)
        return (self.out * share).sum(0).flatten(1)

    def _shared(self, segment: Segment, layer: int, q: Tensor) -> None:
        rows = segment.rows
        mine = q if rows is None else q.index_select(0, rows)
        count = mine.shape[0]
        stacked = mine.transpose(0, 1).reshape(self.shape.kv_heads, count * self.group, -1)
        scores = torch.bmm(stacked, segment.kv[layer, 0].transpose(1, 2))
        weights = scores.softmax(-1)
        out = torch.bmm(weights, segment.kv[layer, 1])
        out = out.unflatten(1, (count, self.group)).transpose(0, 1)
        lse = _lse(scores, weights).unflatten(1, (count, self.group)).transpose(0, 1)
        if rows is None:
            self.out[segment.level] = out
            self.lse[segment.level] = lse
        else:
            self.out[segment.level].index_copy_(0, rows, out)
            self.lse[segment.level].index_copy_(0, rows, lse)


def _lse(scores: Tensor, weights: Tensor) -> Tensor:
    return scores.amax(-1) - weights.amax(-1).log()


class StepAttention:
    """One step's `Attend`: decoding rows come first in the packed batch, prompt chunks follow."""

    def __init__(self, shape: Shape, plan: DecodePlan | None, chunks: Sequence[Chunk]) -> None:
        self.shape, self.plan, self.chunks = shape, plan, chunks
        self.decoding = plan.rows if plan else 0

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `model.Attend`."""
        n = self.decoding
        if self.plan is not None and not self.chunks:
            return self.plan(layer, q, k, v)
        out = torch.empty(q.shape[0], q.shape[1] * q.shape[2], dtype=q.dtype, device=q.device)
        if self.plan is not None:
            out[:n] = self.plan(layer, q[:n], k[:n], v[:n])
        for chunk in self.chunks:
            at = slice(chunk.start, chunk.stop)
            out[at] = self._prompt(chunk, layer, q[at], k[at], v[at])
        return out

    def _prompt(self, chunk: Chunk, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        chunk.out[layer, 0] = k.transpose(0, 1)
        chunk.out[layer, 1] = v.transpose(0, 1)
        keys, values = chunk.out[layer, 0], chunk.out[layer, 1]
        if chunk.past:
            keys = torch.cat([kv[layer, 0] for kv in chunk.past] + [keys], 1)
            values = torch.cat([kv[layer, 1] for kv in chunk.past] + [values], 1)
        count, heads, dim = q.shape
        kv_heads = self.shape.kv_heads
        group = heads // kv_heads
        stacked = q.view(count, kv_heads, group, dim).permute(1, 2, 0, 3).reshape(kv_heads, -1, dim)
        out = F.scaled_dot_product_attention(
            stacked[None], keys[None], values[None], attn_mask=chunk.mask
        )
        return out.view(kv_heads, group, count, dim).permute(2, 0, 1, 3).reshape(count, -1)
