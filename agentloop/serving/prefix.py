"""Token ids in, cached keys and values out: a radix tree of prompt segments, bounded in bytes.

A node holds the KV of one segment of tokens, computed once for everyone whose prompt runs through
it: a system prompt shared by all rollouts, a task shared by a group, a conversation's own turns.
KV depends on the adapter, so each adapter has a root of its own.

The decision worth knowing: a node may exist before its KV does (`kv is None`). Whoever needs it
first plans it, everyone behind shares the plan, and diverging prompts split it. That makes "compute
the common prefix once" fall out of insertion instead of being a special case.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_counter = itertools.count(1)


class Node:
    """A segment. `kv` is [layers, 2, kv heads, tokens, D]; `refs` counts requests that need it.

    `lineage` lists the ids of this node and of what it was cut from, so a request that remembers
    the id of a node it copied recognises both halves later. `own` marks a conversation's private
    continuation.
    """

    __slots__ = ("children", "kv", "lineage", "own", "parent", "refs", "tokens", "used")

    def __init__(self, tokens: Sequence[int], parent: Node | None, *, own: bool = False) -> None:
        self.tokens = list(tokens)
        self.parent = parent
        self.children: dict[int, Node] = {}
        self.kv: Tensor | None = None
        self.refs = 0
        self.used = 0
        self.lineage: tuple[int, ...] = (next(_counter),)
        self.own = own

    @property
    def id(self) -> int:
        """Names this node until it is cut."""
        return self.lineage[-1]

    @property
    def bytes(self) -> int:
        """Bytes of cached KV."""
        return 0 if self.kv is None else self.kv.nbytes

    def path(self) -> list[Node]:
        """Segments from just below the root down to this one."""
        out: list[Node] = []
        node = self
        while node.parent is not None:
            out.append(node)
            node = node.parent
        return out[::-1]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])


class PrefixTree:
    """Roots per adapter; least recently used unpinned leaves go first when `limit` is exceeded."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit = limit_bytes
        self.size = 0
        self.planned = 0
        """Tokens of nodes whose KV is still to be computed."""
        self.splits = 0
        self._roots: dict[str, Node] = {}
        self._clock = itertools.count(1)

    def root(self, adapter: str) -> Node:
        """The root of `adapter` (an id that changes whenever its weights do)."""
        return self._roots.setdefault(adapter, Node((), None))

    def plan(self, adapter: str, tokens: Sequence[int]) -> tuple[Node, int]:
        """The node that ends `tokens`, made if need be, and how many tokens were already there.

        New nodes have no KV yet. The path is pinned; undo with `unpin`.
        """
        node, at = self._descend(self.root(adapter), list(tokens))
        known = at
        if at < len(tokens):
            node = self._append(node, tokens[at:], own=False)
            self.planned += len(node.tokens)
        self._pin(node, +1)
        return node, known

    def _descend(self, node: Node, tokens: list[int]) -> tuple[Node, int]:
        at = 0
        while at < len(tokens) and (child := node.children.get(tokens[at])) is not None:
            same = _common(child.tokens, tokens[at : at + len(child.tokens)])
            if same < len(child.tokens):
                child = self.split(child, same)
            node, at = child, at + same
        return node, at

    def _append(self, parent: Node, tokens: Sequence[int], *, own: bool) -> Node:
        node = Node(tokens, parent, own=own)
        parent.children[tokens[0]] = node
        return node

    def split(self, node: Node, at: int) -> Node:
        """Cut `node` after `at` tokens and return the new upper half, which inherits the pins."""
        parent = node.parent
        if parent is None or not 0 < at < len(node.tokens):
            raise ValueError(f"cannot split a segment of {len(node.tokens)} tokens at {at}")
        upper = Node(node.tokens[:at], parent, own=node.own)
        upper.refs, upper.used = node.refs, node.used
        upper.lineage = (*node.lineage, next(_counter))
        node.lineage = (*node.lineage, next(_counter))
        if node.kv is not None:  # cloned, so that evicting one half really frees it
            upper.kv, node.kv = node.kv[..., :at, :].clone(), node.kv[..., at:, :].clone()
        parent.children[upper.tokens[0]] = upper
        node.tokens, node.parent = node.tokens[at:], upper
        upper.children[node.tokens[0]] = node
        self.splits += 1
        return upper

    def fill(self, node: Node, kv: Tensor) -> None:
        """Give a planned node its KV."""
        node.kv = kv
        self.planned -= len(node.tokens)
        self.size += kv.nbytes
        node.used = next(self._clock)

    def extend(self, node: Node, tokens: Sequence[int], kv: Tensor) -> Node:
        """Store a continuation of `node` (kv [layers, 2, kv heads, len(tokens), D], not aliased)
        and return the node that ends it. Parts that exist already are kept, or filled."""
        at = 0
        for child in self._existing(node, tokens):
            if child.kv is None:
                self.fill(child, kv[..., at : at + len(child.tokens), :].clone())
            node, at = child, at + len(child.tokens)
        if at < len(tokens):
            node = self._append(node, tokens[at:], own=True)
            self.planned += len(node.tokens)
            self.fill(node, kv[..., at:, :].clone() if at else kv)
        return node

    def _existing(self, node: Node, tokens: Sequence[int]) -> list[Node]:
        end, _ = self._descend(node, list(tokens))
        path = end.path()
        return path[path.index(node) + 1 :] if node.parent is not None else path

    def _pin(self, node: Node, by: int) -> None:
        now = next(self._clock)
        at: Node | None = node
        while at is not None:
            at.refs += by
            at.used = now
            at = at.parent

    def pin(self, node: Node) -> None:
        """Keep the whole path of `node`."""
        self._pin(node, +1)

    def unpin(self, node: Node) -> None:
        """Give the path back; a planned tail that nobody needs any more disappears."""
        self._pin(node, -1)
        while node.parent is not None and node.kv is None and not node.refs and not node.children:
            node = self._drop(node)

    def _drop(self, node: Node) -> Node:
        parent = node.parent
        if parent is None:
            raise ValueError("the root cannot be dropped")
        del parent.children[node.tokens[0]]
        if node.kv is None:
            self.planned -= len(node.tokens)
        self.size -= node.bytes
        node.kv = None
        return parent

    def take(self, node: Node) -> Node:
        """Remove a leaf that exactly one request uses (it has copied the KV); returns the parent,
        which that request still pins."""
        if node.refs != 1 or node.children:
            raise ValueError("only a leaf with one user can be taken")
        return self._drop(node)

    def evict(self, limit: int | None = None) -> int:
        """Free least recently used leaves until `size` fits; returns the bytes still held."""
        limit = self.limit if limit is None else limit
        if self.size <= limit:
            return self.size
        nodes = [node for root in self._roots.values() for node in _walk(root)]
        leaves = [(n.used, n.id, n) for n in nodes if not n.children and not n.refs]
        heapq.heapify(leaves)
        while leaves and self.size > limit:
            parent = self._drop(heapq.heappop(leaves)[2])
            if parent.parent is not None and not parent.children and not parent.refs:
                heapq.heappush(leaves, (parent.used, parent.id, parent))
        return self.size


def _walk(root: Node) -> Iterator[Node]:
    stack = list(root.children.values())
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children.values())


def gather(path: Sequence[Node]) -> list[Tensor]:
    """The KV of computed segments; a planned one is a bug and raises."""
    kvs = [node.kv for node in path]
    if any(kv is None for kv in kvs):
        raise RuntimeError("a segment was used before it was computed")
    return [kv for kv in kvs if isinstance(kv, torch.Tensor)]
