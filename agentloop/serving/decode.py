"""Requests as token ids in, sampled ids and log-probs out: continuous batching over one model.

Every `step` is one forward pass over the decoding rows plus some prompt tokens of requests that
still prepare. The decision worth knowing: a prompt is prefilled up to its *last* token only, which
is then the row's first decode input. So prefill never computes logits, and requests with identical
prompts share all of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from agentloop.serving.adapters import Adapter, RowDeltas
from agentloop.serving.attention import Chunk, DecodePlan, StepAttention, causal_mask
from agentloop.serving.batch import Batch, Limits, Row, path_end
from agentloop.serving.model import LlamaLike
from agentloop.serving.prefix import Node, PrefixTree, gather
from agentloop.serving.sampling import sample

SCORE_TOKENS = 128


class Decoder:
    """The scheduler. Not thread-safe: one thread calls it."""

    def __init__(self, model: LlamaLike, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.tree = PrefixTree(limits.cache_bytes)
        self.batch = Batch(model, limits, self.tree)
        self.waiting: deque[Row] = deque()
        self.preparing: list[Row] = []

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self.waiting or self.preparing or self.batch.rows)

    def add(self, row: Row) -> None:
        """Queue a request; its prompt must hold at least one token and fit the context."""
        self.waiting.append(row)

    def step(self) -> list[Row]:
        """One forward pass; returns the rows that ended (cancelled ones included)."""
        with torch.inference_mode():
            return self._step()

    def _step(self) -> list[Row]:
        ended = self._cancel()
        self._admit()
        self._activate()
        self.batch.flush()
        chunks, tokens, positions, adapters = self._chunks()
        if not self.batch.rows and not chunks:
            return ended
        plan = self.batch.plan()
        hidden = self._forward(plan, chunks, tokens, positions, adapters)
        for node, chunk in chunks:
            self.tree.fill(node, chunk.out)
        if self.batch.rows:
            ended += self._sample(hidden[: len(self.batch.rows)])
        if self.tree.size > self.tree.limit:
            self.tree.evict()
        return ended

    def _cancel(self) -> list[Row]:
        gone = [r for r in (*self.waiting, *self.preparing, *self.batch.rows) if r.cancelled()]
        for row in gone:
            row.finish = "cancelled"
            if row in self.waiting:
                self.waiting.remove(row)
            elif row in self.preparing:
                self.preparing.remove(row)
                self.tree.unpin(path_end(row))
            else:
                self.batch.leave(row)
        return gone

    def _admit(self) -> None:
        token_bytes = self.batch.slots.token_bytes
        while self.waiting and len(self.preparing) + len(self.batch.rows) < self.limits.max_batch:
            held = self.tree.size + self.tree.planned * token_bytes
            if held > self.tree.limit and (self.preparing or self.batch.rows):
                # Prompts share the cache with what runs: make room, else let some rows end first.
                target = self.tree.limit - self.tree.planned * token_bytes
                if target < 0 or self.tree.evict(target) > target:
                    return
            row = self.waiting.popleft()
            row.node, row.cached = self.tree.plan(row.root, row.prompt[:-1])
            self.preparing.append(row)

    def _activate(self) -> None:
        ready = [r for r in self.preparing if all(n.kv is not None for n in path_end(r).path())]
        for row in ready:
            self.preparing.remove(row)
            self.batch.enter(row)

    def _chunks(
        self,
    ) -> tuple[list[tuple[Node, Chunk]], list[int], list[int], list[Adapter | None]]:
        """Segments to compute in this step, and their packed tokens, positions and adapters."""
        budget, start = self.limits.prefill_tokens, len(self.batch.rows)
        chunks: list[tuple[Node, Chunk]] = []
        tokens: list[int] = []
        positions: list[int] = []
        adapters: list[Adapter | None] = []
        seen: set[int] = set()
        for row in self.preparing:
            path = path_end(row).path()
            at = next((i for i, node in enumerate(path) if node.kv is None), None)
            if at is None or id(path[at]) in seen:
                continue
            node, before = path[at], path[:at]
            if len(node.tokens) > budget:
                if chunks and budget < self.limits.prefill_tokens // 4:
                    break  # a sliver would only fragment the segment
                node = self.tree.split(node, budget)
            seen.add(id(node))
            size, past = len(node.tokens), sum(len(n.tokens) for n in before)
            chunks.append((node, self._chunk(start + len(tokens), size, gather(before))))
            tokens += node.tokens
            positions += range(past, past + size)
            adapters += [row.adapter] * size
            budget -= size
            if budget <= 0:
                break
        return chunks, tokens, positions, adapters

    def _chunk(self, start: int, size: int, past: list[Tensor]) -> Chunk:
        model, shape = self.model, self.model.shape
        out = torch.empty(
            (shape.layers, 2, shape.kv_heads, size, shape.head_dim),
            dtype=model.dtype, device=model.device,
        )  # fmt: skip
        mask = causal_mask(
            size, sum(kv.shape[3] for kv in past), shape.heads // shape.kv_heads, like=out
        )
        return Chunk(start, start + size, past, out, mask)

    def _forward(
        self, plan: DecodePlan | None, chunks: Sequence[tuple[Node, Chunk]],
        tokens: list[int], positions: list[int], adapters: list[Adapter | None],
    ) -> Tensor:  # fmt: skip
        device = self.model.device
        inputs = [row.tokens[-1] if row.tokens else row.prompt[-1] for row in self.batch.rows]
        places = [len(row.prompt) - 1 + len(row.tokens) for row in self.batch.rows]
        attend = StepAttention(self.model.shape, plan, [chunk for _, chunk in chunks])
        return self.model.forward(
            torch.tensor(inputs + tokens, device=device),
            torch.tensor(places + positions, device=device),
            attend,
            self._deltas([row.adapter for row in self.batch.rows] + adapters),
        )

    def _deltas(self, adapters: Sequence[Adapter | None]) -> RowDeltas | None:
        rows: dict[str, tuple[Adapter, list[int]]] = {}
        for index, adapter in enumerate(adapters):
            if adapter is not None:
                rows.setdefault(adapter.uid, (adapter, []))[1].append(index)
        if not rows:
            return None
        device = self.model.device
        groups = [(a, torch.tensor(r, device=device)) for a, r in rows.values()]
        return RowDeltas(groups, len(adapters))

    def _sample(self, hidden: Tensor) -> list[Row]:
        picked, logprobs = sample(self.model.logits(hidden), [row.draw for row in self.batch.rows])
        ended = []
        for row, token, logprob in zip(list(self.batch.rows), picked, logprobs, strict=True):
            row.tail.append(row.tokens[-1] if row.tokens else row.prompt[-1])
            if row.accept(token, logprob, self.model.shape.context):
                ended.append(row)
        for row in ended:
            self.batch.leave(row)
        return ended

    def score(self, tokens: Sequence[int], adapter: Adapter | None) -> list[float]:
        """Untempered log-probs of tokens[1:], each given all before it: len(tokens) - 1 numbers."""
        with torch.inference_mode():
            return self._score(tokens, adapter)

    def _score(self, tokens: Sequence[int], adapter: Adapter | None) -> list[float]:
        out: list[float] = []
        past: list[Tensor] = []
        device = self.model.device
        for start in range(0, len(tokens) - 1, SCORE_TOKENS):
            part = list(tokens[start : min(start + SCORE_TOKENS, len(tokens) - 1)])
            chunk = self._chunk(0, len(part), list(past))
            hidden = self.model.forward(
                torch.tensor(part, device=device),
                torch.arange(start, start + len(part), device=device),
                StepAttention(self.model.shape, None, [chunk]),
                self._deltas([adapter] * len(part)),
            )
            goal = torch.tensor(tokens[start + 1 : start + 1 + len(part)], device=device)
            logprobs = self.model.logits(hidden).log_softmax(-1)
            out += logprobs.gather(1, goal[:, None])[:, 0].tolist()
            past.append(chunk.out)
        return out
