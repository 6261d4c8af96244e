"""Rows that decode together, each with a slot and a path of shared segments.

Rows come in when their prompt is computed and leave when they end; in between this decides what a
row attends to in place (segments it shares) and what is copied into its slot. The decision worth
knowing: a row's attention is a set, so copies of short segments may lie in its slot in any order,
and few groups remain to be visited per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from agentloop.serving.adapters import Adapter
from agentloop.serving.attention import DecodePlan, Segment, Slots
from agentloop.serving.model import LlamaLike
from agentloop.serving.prefix import Node, PrefixTree, gather
from agentloop.serving.sampling import Draw

SHARE_TOKENS = 256
"""A segment is attended in place when that saves copying at least this many tokens in total."""
COPY_TOKENS = 192
"""A longer segment is always attended in place."""


@dataclass(slots=True, eq=False)
class Row:
    """One request. `tokens` and `logprobs` grow; `finish` is set at the end."""

    prompt: list[int]
    draw: Draw
    adapter: Adapter | None = None
    eos: frozenset[int] = frozenset()
    stops: Callable[[list[int]], bool] | None = None
    """Whether the sampled ids so far contain a stop string."""
    cancelled: Callable[[], bool] = lambda: False
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = ""
    cached: int = 0
    node: Node | None = None
    copied: set[int] = field(default_factory=set)
    inner: int = 0
    tail: list[int] = field(default_factory=list)

    @property
    def root(self) -> str:
        """Which prefix tree this row's KV belongs to."""
        return self.adapter.uid if self.adapter else ""

    @property
    def held(self) -> int:
        """Tokens in the slot: `inner` copied from shared segments, then the row's own tail."""
        return self.inner + len(self.tail)

    def accept(self, token: int, logprob: float, context: int) -> bool:
        """Take one sampled token; true when the row is finished."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        sampling = self.draw.sampling
        if (token in self.eos and not sampling.ignore_eos) or (
            self.stops is not None and self.stops(self.tokens)
        ):
            self.finish = "stop"
        elif (
            len(self.tokens) >= sampling.max_tokens
            or len(self.prompt) + len(self.tokens) >= context
        ):
            self.finish = "length"
        return bool(self.finish)


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes: rows decoded together, bytes of cached prefixes, prompt tokens per step, slot size."""

    max_batch: int = 64
    cache_bytes: int = 384 * 2**20
    prefill_tokens: int = 512
    slot_tokens: int = 256


class Batch:
    """The decoding rows, densely in slots 0..n-1."""

    def __init__(self, model: LlamaLike, limits: Limits, tree: PrefixTree) -> None:
        self.model, self.limits, self.tree = model, limits, tree
        self.slots = Slots(
            model.shape, limits.max_batch, limits.slot_tokens,
            dtype=model.dtype, device=model.device,
        )  # fmt: skip
        self.rows: list[Row] = []
        self._plan: DecodePlan | None = None
        self._splits = 0

    def enter(self, row: Row) -> None:
        """Give the row a slot; short private segments are copied into it, so that attention has
        few segments to visit. A private end of the path moves into the slot altogether."""
        index, path = len(self.rows), path_end(row).path()
        room = self.limits.slot_tokens - 32
        private = next((i for i, node in enumerate(path) if node.own), len(path))
        last = len(path)
        small = [self._small(node) for node in path]
        while last > private and small[last - 1] and path[last - 1].refs == 1:
            size = sum(len(node.tokens) for node in path[last - 1 :])
            if size > room or path[last - 1].children.keys() - _firsts(path[last:]):
                break
            last -= 1
        room -= sum(len(node.tokens) for node in path[last:])
        for node, short in zip(path[:last], small, strict=False):
            if short and len(node.tokens) <= room:
                self.slots.write(index, row.inner, gather([node])[0])
                row.inner += len(node.tokens)
                row.copied.add(node.id)
                room -= len(node.tokens)
        for node in path[last:]:
            self.slots.write(index, row.held, gather([node])[0])
            row.tail += node.tokens
        for node in reversed(path[last:]):
            row.node = self.tree.take(node)
        self.rows.append(row)
        self._plan = None

    def _small(self, node: Node) -> bool:
        size = len(node.tokens)
        return size <= COPY_TOKENS and (node.refs - 1) * size < SHARE_TOKENS

    def plan(self) -> DecodePlan | None:
        """Attention for the next step, or `None` when no row decodes."""
        if not self.rows:
            self._plan = None
            return None
        if self._plan is None or self._splits != self.tree.splits:
            self._splits = self.tree.splits
            self._plan = DecodePlan(self.model.shape, self.slots, len(self.rows), self._segments())
        self._plan.advance([row.held for row in self.rows])
        return self._plan

    def _segments(self) -> list[Segment]:
        users: dict[int, tuple[Node, int, list[int]]] = {}
        for index, row in enumerate(self.rows):
            path = path_end(row).path()
            for depth, node in enumerate(path):
                if row.copied.isdisjoint(node.lineage):
                    users.setdefault(id(node), (node, depth, []))[2].append(index)
        depths = sorted({depth for _, depth, _ in users.values()})
        device = self.model.device
        return [
            Segment(
                gather([node])[0],
                None if len(rows) == len(self.rows) else torch.tensor(rows, device=device),
                depths.index(depth),
            )
            for node, depth, rows in users.values()
        ]

    def flush(self) -> None:
        """Empty full slots. Before a step's prompt chunks are chosen: it may cut segments."""
        for index, row in enumerate(self.rows):
            if row.held >= self.limits.slot_tokens:
                self._flush(index, row)

    def _flush(self, index: int, row: Row) -> None:
        """Turn the row's own tokens into a segment of its path, so that a long answer does not
        make every slot long; copies of shared segments are attended in place from now on."""
        old = path_end(row)
        kv = self.slots.read(index, row.inner, row.held)
        row.node = self.tree.extend(old, row.tail, kv)
        self.tree.pin(row.node)
        self.tree.unpin(old)
        row.copied.clear()
        row.inner, row.tail = 0, []
        self._plan = None

    def leave(self, row: Row) -> None:
        """End a decoding row: keep its KV for the conversation's next turn, close the gap."""
        index, last = self.rows.index(row), len(self.rows) - 1
        if row.tail:
            self._flush(index, row)
        self.tree.unpin(path_end(row))
        row.node = None
        if index != last:
            self.slots.move(last, index, self.rows[last].held)
            self.rows[index] = self.rows[last]
        self.rows.pop()
        self._plan = None


def path_end(row: Row) -> Node:
    """The segment that ends what the row has planned or stored."""
    if row.node is None:
        raise RuntimeError("a row was used before it was planned")
    return row.node


def _firsts(path: Sequence[Node]) -> set[int]:
    return {path[0].tokens[0]} if path else set()
