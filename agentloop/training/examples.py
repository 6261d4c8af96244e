"""Rows to what a causal language model is trained on: ids, labels, and batches of like length.

In: rows and a function that renders a prompt. Out: `Example`s whose labels are -100 wherever
nothing was sampled (prompt, tool output, template tokens), and an order of batches. Pure Python,
so the masks are tested without a model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from agentloop.errors import UsageError
from agentloop.records import Message, Row

IGNORED = -100
"""Label of a position without a loss (the convention of torch's cross entropy)."""


@dataclass(frozen=True, slots=True)
class Example:
    """`labels[i]` is `input_ids[i]` where that token was sampled, else `IGNORED`; the shift by one
    between a position and the token it predicts is the loss's business."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    weight: float = 1.0


def check_row(row: Row) -> None:
    """Raise `UsageError` unless the row has a sample, a positive weight and aligned parts."""
    if len(row.segments) != len(row.sampled):
        raise UsageError(f"a row of episode `{row.episode}` has unaligned segments and flags")
    if row.logprobs and len(row.logprobs) != len(row.segments):
        raise UsageError(f"a row of episode `{row.episode}` has unaligned segments and log-probs")
    if not 0 < row.weight < math.inf:
        raise UsageError(f"a row of episode `{row.episode}` has the weight {row.weight}")
    pairs = zip(row.segments, row.sampled, strict=True)
    if not any(segment and flag for segment, flag in pairs):
        raise UsageError(f"a row of episode `{row.episode}` has no sampled token to learn from")


def example(row: Row, render: Callable[[tuple[Message, ...]], Sequence[int]]) -> Example:
    """The row's tokens: the rendered prompt (with the opening of the assistant's turn), then its
    segments as they are. Raises `UsageError` on a malformed row."""
    check_row(row)
    ids = list(render(row.prompt)) if row.prompt else []
    labels = [IGNORED] * len(ids)
    for segment, sampled in zip(row.segments, row.sampled, strict=True):
        ids.extend(segment)
        labels.extend(segment if sampled else [IGNORED] * len(segment))
    return Example(input_ids=tuple(ids), labels=tuple(labels), weight=row.weight)


def fitting(examples: Iterable[Example], max_length: int) -> list[Example]:
    """Those with at most `max_length` tokens; raises `UsageError` when there is none."""
    kept = [each for each in examples if len(each.input_ids) <= max_length]
    if not kept:
        raise UsageError(f"no row has at most {max_length} tokens; raise `max_length`")
    return kept


def length_bucketed(lengths: Sequence[int], batch_size: int, seed: int) -> list[int]:
    """A permutation of `range(len(lengths))` whose consecutive batches have similar lengths.

    Ties and the order of batches are drawn by `seed`, so that two epochs differ and training does
    not run from short to long. The incomplete batch comes last, as a loader cuts the order
    every `batch_size`; which lengths it holds is drawn too.
    """
    chance = random.Random(seed)
    order = sorted(range(len(lengths)), key=lambda at: (lengths[at], chance.random()))
    full, rest = divmod(len(order), batch_size)
    start = chance.randint(0, full) * batch_size
    last = order[start : start + rest]
    del order[start : start + rest]
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    chance.shuffle(batches)
    return [index for batch in (*batches, last) for index in batch]
