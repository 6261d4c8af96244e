"""Episodes to rows that say which of two, or of several, was better.

In: chosen episodes. Out: rows with `label` and either `pair` (two of one group), nothing (alone) or
`group` (a list). One decision: a row holds the conversation that gave the answer, one branch, the
last; its samples are all learned from, because a preference is of the whole. Rows are exact (every
token as the engine saw it), or with `system` bare: the prompt as messages under that system text,
for what is to be served without the examples that were lent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Literal

from agentloop.datasets.groups import groups
from agentloop.datasets.rl_rows import has_prompt_ids
from agentloop.datasets.rows import bare_row, why_unusable
from agentloop.datasets.segments import cut, fields
from agentloop.records import Episode, Row, Trajectory, content_id
from agentloop.trajectories.branches import branches
from agentloop.trajectories.redact import Redactor

Mode = Literal["all", "one"]
"""Every success with every failure of its group, or one pair per group."""


def preference_rows(
    episodes: Sequence[Episode],
    *,
    system: str | None = None,
    mode: Mode = "all",
    margin: float | None = None,
    redact: Redactor | None = None,
) -> list[Row]:
    """Two rows per pair, the preferred first; groups without a pair give none.

    A pair is a success and a failure of one group or, with `margin`, any two whose rewards differ
    by at least that (for scores that a judge gave). Of `one` pair it is the best and the worst of
    them, by reward, then by id.
    """
    rows: list[Row] = []
    for name, members in _usable(episodes, system, redact).items():
        ranked = sorted(members, key=lambda one: (-_value(one[0]), one[0].id))
        pairs = [
            (good, bad) for good, bad in product(ranked, ranked[::-1])
            if _better(good[0], bad[0], margin)
        ]  # fmt: skip
        for good, bad in pairs[:1] if mode == "one" else pairs:
            pair = content_id("pair", name, good[0].id, bad[0].id)
            rows.append(replace(good[1], pair=pair, label=True))
            rows.append(replace(bad[1], pair=pair, label=False))
    return rows


def unpaired_rows(
    episodes: Sequence[Episode], *, system: str | None = None, redact: Redactor | None = None
) -> list[Row]:
    """One row per usable episode, labelled by whether it was right."""
    found = _usable(episodes, system, redact)
    return [replace(row, label=one.success) for members in found.values() for one, row in members]


def listwise_rows(
    episodes: Sequence[Episode],
    *,
    system: str | None = None,
    most: int | None = None,
    redact: Redactor | None = None,
) -> list[Row]:
    """One row per usable episode of each group that has right and wrong ones, labelled; at most
    `most` of a group, as near to half and half as it has them."""
    rows: list[Row] = []
    for members in _usable(episodes, system, redact).values():
        right = [(one, row) for one, row in members if one.success]
        wrong = [(one, row) for one, row in members if not one.success]
        if not right or not wrong:
            continue
        room = len(members) if most is None else max(2, most)
        many = max(room // 2, room - len(wrong))
        right = right[:many]
        kept = right + wrong[: room - len(right)]
        rows += [replace(row, label=one.success) for one, row in kept]
    return rows


def _usable(
    episodes: Sequence[Episode], system: str | None, redact: Redactor | None
) -> dict[str, list[tuple[Episode, Row]]]:
    """By group the episodes of which a row can be made, each with it, in the order of ids."""
    redact = redact or Redactor.from_environment()
    make = _exact if system is None else _bare(system)
    found: dict[str, list[tuple[Episode, Row]]] = {}
    for name, members in groups(sorted(episodes, key=lambda one: one.id)).items():
        made = ((one, _row(one, make, redact)) for one in members)
        rows = [(one, replace(row, group=name)) for one, row in made if row is not None]
        if rows:
            found[name] = rows
    return found


Maker = Callable[[Episode, Trajectory], Row | None]


def _row(episode: Episode, make: Maker, redact: Redactor) -> Row | None:
    """The row of the first trajectory that allows one."""
    for trajectory in episode.trajectories:
        if why_unusable(trajectory, redact) is None:
            row = make(episode, trajectory)
            if row is not None:
                reward = episode.score.value if episode.score else None
                return replace(row, reward=reward)
    return None


def _exact(episode: Episode, trajectory: Trajectory) -> Row | None:
    if not has_prompt_ids(trajectory):
        return None
    for branch in reversed(branches(trajectory)):
        if found := cut(branch, trajectory, lambda *_: True):
            return Row(episode=episode.id, prompt=(), **fields(found, trajectory))
    return None


def _bare(system: str) -> Maker:
    return lambda episode, trajectory: bare_row(episode, trajectory, system)


def _better(good: Episode, bad: Episode, margin: float | None) -> bool:
    if margin is None:
        return good.success and not bad.success
    return _value(good) - _value(bad) >= margin > 0


def _value(episode: Episode) -> float:
    return episode.score.value if episode.score else 0.0
