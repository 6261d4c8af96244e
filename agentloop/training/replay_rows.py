"""Stored rows to aligned tokens, and steps to parts that share beginnings and fit in memory.

In: rows with exact ids, flags, log-probs and credit. Out: `Sample`s, the rows of each step, and the
`Part`s a step is computed in. Pure Python, so masks and plans are tested without a model. The
decision worth knowing: what the rows of a group begin with is computed once, and several groups
share one pass, cut to the shortest beginning among them, so that nothing is padded on the left.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

from agentloop.errors import UsageError
from agentloop.records import Row
from agentloop.training.examples import check_row
from agentloop.training.replay_settings import ReplaySettings

SUCCESS = 0.99
"""A row without a label is right from this reward on (graders that reach 1 by adding floats do)."""
_WORTH_SHARING = 8
"""Tokens; below, a second call of the model costs more than it saves."""
_DEARER = 1.05
"""Groups go into one pass when that is not this much more work than two."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A row, token by token: all tuples have one item per token, 0 or false where unsampled."""

    ids: tuple[int, ...]
    sampled: tuple[bool, ...]
    old: tuple[float, ...]
    """The log-probs it was sampled with."""
    advantages: tuple[float, ...]
    first: tuple[bool, ...]
    """Of the first attempt, or where there is only one, of the first sampled segment."""
    group: str
    weight: float = 1.0
    correct: bool = False
    share: float = 0.5

    @property
    def context(self) -> int:
        """How many tokens come before the first sampled one."""
        return self.sampled.index(True)


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a step that are computed together: the first `shared` tokens of `heads` (one row of
    each group) once, then the rest of every row of `rows`, whose head is `heads[head_of[i]]`."""

    rows: tuple[int, ...]
    heads: tuple[int, ...]
    head_of: tuple[int, ...]
    shared: int


def sample(row: Row, settings: ReplaySettings) -> Sample:
    """The row's tokens and what each was worth.

    Raises `UsageError` for a row that is malformed, lacks what the loss needs, begins with a
    sampled token (nothing predicts it), or still has a prompt to be rendered.
    """
    check_row(row)
    if row.prompt:
        raise _bad(row, "has a prompt to render; a ratio needs the tokens the engine saw")
    if len(row.logprobs) != len(row.segments):
        raise _bad(row, "has no log-probs; use a method that imitates")
    gradient = settings.loss == "policy_gradient"
    if gradient and len(row.advantages) != len(row.segments):
        raise _bad(row, "has no advantages; give it credit first")
    if row.attempts and len(row.attempts) != len(row.segments):
        raise _bad(row, "has unaligned segments and attempts")
    if not gradient and row.label is None and row.reward is None:
        raise _bad(row, "has neither a label nor a reward")
    if not gradient and (row.share is None or not 0 < row.share < 1):
        raise _bad(
            row, f"has the share {row.share}; groups all right or all wrong are to be left out"
        )
    ids: list[int] = []
    sampled: list[bool] = []
    old: list[float] = []
    advantages: list[float] = []
    first: list[bool] = []
    for at, (segment, flag) in enumerate(zip(row.segments, row.sampled, strict=True)):
        many = len(segment)
        if flag and len(row.logprobs[at]) != many:
            raise _bad(row, f"has {many} sampled tokens and {len(row.logprobs[at])} log-probs")
        early = row.attempts[at] == 1 if row.attempts else True not in sampled
        first.extend(repeat(flag and early, many))
        ids.extend(segment)
        sampled.extend(repeat(flag, many))
        old.extend(row.logprobs[at] if flag else repeat(0.0, many))
        advantages.extend(repeat(row.advantages[at] if flag and gradient else 0.0, many))
    if not all(map(math.isfinite, (*old, *advantages))):
        raise _bad(row, "has a log-prob or an advantage that is not finite")
    if sampled[0]:
        raise _bad(row, "begins with a sampled token, which nothing predicts")
    correct = row.label if row.label is not None else (row.reward or 0.0) >= SUCCESS
    return Sample(
        tuple(ids), tuple(sampled), tuple(old), tuple(advantages), tuple(first), row.group,
        row.weight, correct, 0.5 if row.share is None else row.share,
    )  # fmt: skip


def temperature_of(rows: Sequence[Row], settings: ReplaySettings) -> float:
    """The one temperature all rows were sampled at.

    Raises `UsageError` for greedy rows, rows of several temperatures, and, unless
    `settings.cut_off` is `keep`, rows sampled with `top_p` or `top_k`.
    """
    found = set()
    for row in rows:
        how = row.sampling
        found.add(settings.temperature if how is None else how.temperature)
        if how is None or settings.cut_off == "keep":
            continue
        if how.top_p < 1 or how.top_k > 0:
            cut = f"top_p {how.top_p:g} and top_k {how.top_k}"
            raise _bad(row, f"was sampled with {cut}, so its ratios are biased; see `cut_off`")
    if len(found) != 1:
        raise UsageError(f"the rows were sampled at the temperatures {sorted(found)}; select one")
    temperature = found.pop()
    if not temperature > 0:
        raise UsageError("rows sampled at temperature 0 have no ratio; sample above 0, or imitate")
    return temperature


def steps(samples: Sequence[Sample], batch_size: int, seed: int) -> list[list[int]]:
    """Indices of the rows of each step of one pass. Groups are drawn by `seed` and never parted;
    their number decides how many steps there are, so every pass has as many."""
    groups = list(by_group(samples).values())
    random.Random(seed).shuffle(groups)
    count = min(len(groups), math.ceil(len(samples) / batch_size))
    found: list[list[int]] = [[] for _ in range(count)]
    for group in groups:
        min(found, key=len).extend(group)
    return found


def by_group(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Indices by group, in order; a row without a group is one of its own."""
    groups: dict[str, list[int]] = {}
    for at, each in enumerate(samples):
        groups.setdefault(each.group or f"row {at}", []).append(at)
    return groups


def parts(samples: Sequence[Sample], at_once: int, share: bool) -> list[Part]:
    """A step's rows in parts of at most `at_once` tokens, padding included (a longer row is a part
    of its own), rows of like length together."""
    chunks = []
    for group in by_group(samples).values():
        group.sort(key=lambda at: len(samples[at].ids))
        beginning = _beginning([samples[at] for at in group]) if share else 0
        chunks.extend(_chunks(samples, group, beginning, at_once))
    chunks.sort(key=lambda chunk: (chunk.shared, _width(samples, chunk)))
    merged: list[tuple[Part, int]] = []  # and what its chunks would cost apart
    for chunk in chunks:
        cost = _cost(samples, chunk)
        if merged:
            last, before = merged[-1]
            both = _merge(last, chunk)
            if _cost(samples, both) <= min(at_once, _DEARER * (before + cost)):
                merged[-1] = (both, before + cost)
                continue
        merged.append((chunk, cost))
    return [_worth_it(part) for part, _ in merged]


def _chunks(
    samples: Sequence[Sample], group: Sequence[int], beginning: int, at_once: int
) -> list[Part]:
    """One group, sorted by length, in parts that fit."""
    found: list[Part] = []
    for at in group:
        one = Part((at,), (at,), (0,), beginning)
        if found:
            last = found[-1]
            longer = Part((*last.rows, at), last.heads, (*last.head_of, 0), beginning)
            if _cost(samples, longer) <= at_once:
                found[-1] = longer
                continue
        found.append(one)
    return found


def _merge(a: Part, b: Part) -> Part:
    return Part(
        a.rows + b.rows,
        a.heads + b.heads,
        a.head_of + tuple(len(a.heads) + at for at in b.head_of),
        min(a.shared, b.shared),
    )


def _worth_it(part: Part) -> Part:
    """Without a beginning of its own when every row is the only one of its group."""
    if len(part.heads) < len(part.rows):
        return part
    return Part(part.rows, part.heads, part.head_of, 0)


def _beginning(group: Sequence[Sample]) -> int:
    """How many tokens all rows begin with, before any of them predicts a sampled one; 0 for few."""
    same = min(each.context for each in group) - 1
    first = group[0].ids
    for at in range(same):
        if any(each.ids[at] != first[at] for each in group):
            same = at
            break
    return same if same >= _WORTH_SHARING else 0


def _width(samples: Sequence[Sample], part: Part) -> int:
    return max(len(samples[at].ids) for at in part.rows)


def _cost(samples: Sequence[Sample], part: Part) -> int:
    """Tokens that are computed, padding included."""
    rest = _width(samples, part) - part.shared
    return len(part.heads) * part.shared + len(part.rows) * rest


def _bad(row: Row, what: str) -> UsageError:
    return UsageError(f"a row of episode `{row.episode}` {what}")
