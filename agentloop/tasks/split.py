"""Which split a task is in, and the order tasks are drawn in: functions of its text alone.

In: a text (an id or a prompt). Out: a fraction, an order, an interleaving. The decision worth
knowing: nothing is random and nothing depends on position, so adding tasks to a source never moves
an old one from `heldout` to `train`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TypeVar

T = TypeVar("T")
HELDOUT = 0.3
"""The share of a source that is held out unless it says otherwise."""


def fraction(*parts: object) -> float:
    """A number in [0, 1), uniform over texts and the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def is_heldout(text: str, share: float = HELDOUT) -> bool:
    """Whether the task with this text is held out, as `share` of all texts are."""
    return fraction("split", text) < share


def interleave(groups: Sequence[Iterable[T]]) -> Iterator[T]:
    """One of each group in turn, lazily; a group that ends is left out from then on."""
    ended = object()
    for row in zip_longest(*groups, fillvalue=ended):
        for item in row:
            if item is not ended:
                yield item  # type: ignore[misc]
