"""Rows of preference learning to batches: pairs, single labelled rows, right-padded tensors.

In: rows with exact token ids and labels. Out: columns of a dataset and batches with TRL's keys.
Tokens are only ever copied; the columns also say how many tokens a unit costs, for bucketing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agentloop.errors import UsageError
from agentloop.records import Message, Row
from agentloop.training.examples import IGNORED, Example, example

Batch = dict[str, Tensor]
Render = Callable[[tuple[Message, ...]], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Pair:
    """A preferred row and the one it is preferred to."""

    good: Example
    bad: Example

    @property
    def length(self) -> int:
        """Tokens of the longer one."""
        return max(len(self.good.input_ids), len(self.bad.input_ids))

    def columns(self) -> dict[str, Any]:
        """As the trainer's dataset holds it."""
        shared = 0
        for one, other in zip(self.good.input_ids, self.bad.input_ids, strict=False):
            if one != other:
                break
            shared += 1
        whole = len(self.good.input_ids) + len(self.bad.input_ids)
        return {
            "good_ids": self.good.input_ids, "good_labels": self.good.labels,
            "bad_ids": self.bad.input_ids, "bad_labels": self.bad.labels,
            "length": whole - shared,
        }  # fmt: skip


def pairs(rows: Sequence[Row], render: Render) -> list[Pair]:
    """The pairs that `rows` hold, by name. Raises `UsageError` for a row without a pair and for a
    pair that is not one preferred row and one other."""
    named: dict[str, dict[bool, Example]] = {}
    for row in rows:
        if not row.pair:
            raise UsageError(
                f"a row of episode `{row.episode}` names no pair; freeze preference rows, or use "
                "`agentloop.training.preference:kto` for rows with a label alone"
            )
        sides = named.setdefault(row.pair, {})
        if labelled(row) in sides:
            raise UsageError(f"pair `{row.pair}` has two rows with the label {row.label}")
        sides[labelled(row)] = example(row, render)
    halves = [name for name, sides in named.items() if len(sides) != 2]
    if halves:
        raise UsageError(f"pair `{halves[0]}` has one row; a pair is a preferred row and another")
    return [Pair(good=sides[True], bad=sides[False]) for sides in named.values()]


def singles(rows: Sequence[tuple[Example, bool]]) -> list[dict[str, Any]]:
    """Labelled rows as the trainer's dataset holds them, each with the answer of another row under
    its own prompt: on those the baseline of KTO is estimated."""
    order = sorted(range(len(rows)), key=lambda at: len(rows[at][0].input_ids))
    prompts = [_prompt(rows[at][0]) for at in order]
    columns = []
    for place, at in enumerate(order):
        others = [(place + step) % len(order) for step in range(1, len(order))]
        # The nearest in length that answers something else; with one prompt for all, the nearest.
        other = next((one for one in others if prompts[one] != prompts[place]), others[0])
        mine, theirs = rows[at][0], rows[order[other]][0]
        prompt, answer = len(prompts[place]), len(prompts[other])
        columns.append(
            {
                "ids": mine.input_ids, "labels": mine.labels, "label": rows[at][1],
                "kl_ids": (*mine.input_ids[:prompt], *theirs.input_ids[answer:]),
                "kl_labels": (*mine.labels[:prompt], *theirs.labels[answer:]),
                "length": len(mine.input_ids),
            }
        )  # fmt: skip
    return columns


def _prompt(row: Example) -> tuple[int, ...]:
    """What comes before the first sampled token."""
    first = next(at for at, label in enumerate(row.labels) if label != IGNORED)
    return row.input_ids[:first]


def labelled(row: Row) -> bool:
    """The row's label; `UsageError` without one, or with a weight."""
    if row.label is None:
        raise UsageError(f"a row of episode `{row.episode}` has no label; freeze preference rows")
    if row.weight != 1.0:
        raise UsageError(
            f"a row of episode `{row.episode}` has the weight {row.weight:g}; preferences weigh 1"
        )
    return row.label


def refuse_empty(kept: Sequence[Any], most: int) -> None:
    """Raise `UsageError` when no row was short enough."""
    if not kept:
        raise UsageError(f"too few rows have at most {most} tokens; raise `max_length`")


def mean_length(rows: Sequence[Example]) -> float:
    """Sampled tokens of a row, on average."""
    return sum(label != IGNORED for row in rows for label in row.labels) / len(rows)


def collate_pairs(batch: Sequence[Mapping[str, Any]], pad: int) -> Batch:
    """TRL's keys: preferred rows first, then the others, right-padded (2n x time)."""
    ids = [row["good_ids"] for row in batch] + [row["bad_ids"] for row in batch]
    labels = [row["good_labels"] for row in batch] + [row["bad_labels"] for row in batch]
    found = _padded(ids, labels, pad) | {"lengths": torch.tensor([row["length"] for row in batch])}
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        if name in batch[0]:
            found[name] = torch.tensor([row[name] for row in batch])
    return found


def collate_singles(batch: Sequence[Mapping[str, Any]], pad: int) -> Batch:
    """TRL's keys: rows (n x time), and under `KL_` the same prompts with other answers."""
    mine = _padded([row["ids"] for row in batch], [row["labels"] for row in batch], pad)
    other = _padded([row["kl_ids"] for row in batch], [row["kl_labels"] for row in batch], pad)
    found = mine | {f"KL_{name}": tensor for name, tensor in other.items()}
    found["label"] = torch.tensor([row["label"] for row in batch])
    found["lengths"] = torch.tensor([row["length"] for row in batch])
    for name in ("ref_logps", "ref_KL_logps"):
        if name in batch[0]:
            found[name] = torch.tensor([row[name] for row in batch])
    return found


def _padded(ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], pad: int) -> Batch:
    width = max(map(len, ids))
    gaps = [width - len(row) for row in ids]
    return {
        "input_ids": torch.tensor([[*row, *[pad] * n] for row, n in zip(ids, gaps, strict=True)]),
        "attention_mask": torch.tensor([[1] * (width - n) + [0] * n for n in gaps]),
        "completion_mask": torch.tensor(
            [
                [*(int(label != IGNORED) for label in row), *[0] * n]
                for row, n in zip(labels, gaps, strict=True)
            ]
        ),
    }
