"""A phase's data, from the log to a frozen dataset, and again from what was frozen.

In: episodes, and the three parts select, credit, rows. Out: `Built` (rows and why others are not
there), a `Dataset` with its whole lineage, and from that, with `again`, the same rows once more.
One decision: what a late signal could change is frozen beside the rows: the score each episode was
chosen by, its group's share, its nearness. Later scores and a rebuilt index do not move a phase.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from agentloop.datasets.credit import Credit
from agentloop.datasets.filters import BASE, Chosen, Filters, Lent
from agentloop.datasets.groups import policies
from agentloop.datasets.makers import Made, RowMaker
from agentloop.datasets.manifest import Frozen, freeze, read_frozen
from agentloop.errors import StoreError, UsageError
from agentloop.records import Dataset, Episode, Json, Row, content_id
from agentloop.trajectories.codec import to_json
from agentloop.trajectories.redact import Redactor


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a phase learns from, and how it came about."""

    rows: tuple[Row, ...]
    chosen: Chosen
    left_out: dict[str, dict[str, int]]
    """`episodes` that were not chosen and `trajectories` that gave no row, by reason."""
    spec: dict[str, Json]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Select, credit, rows: the data of one phase."""

    select: Filters
    rows: RowMaker
    credit: Credit | None = None
    system: str = ""
    """The text that bare prompts are trained under."""

    def build(
        self, episodes: Sequence[Episode], lent: Lent | None = None, *,
        redact: Redactor | None = None,
    ) -> Built:  # fmt: skip
        """Choose, pay, cut. Raises what the parts raise."""
        lent = lent or Lent()
        chosen = self.select.choose(episodes, lent)
        made = self.make(chosen, redact=redact)
        left_out = {"episodes": chosen.left_out, "trajectories": made.left_out}
        spec: dict[str, Json] = {
            **self.spec(),
            "resolved": _resolved(lent),
            "split": {
                "name": "train",
                "held_out": len(lent.held_out),
                "held_out_id": content_id("tasks", sorted(task.id for task in lent.held_out)),
            },
            "parents": _parents(chosen.episodes),
            "left_out": to_json(left_out),
        }
        return Built(rows=made.rows, chosen=chosen, left_out=left_out, spec=spec)

    def make(self, chosen: Chosen, *, redact: Redactor | None = None) -> Made:
        """The rows of episodes that are chosen already."""
        credits = None if self.credit is None else self.credit.assign(chosen.episodes)
        return self.rows.make(chosen, credits=credits, system=self.system, redact=redact)

    def spec(self) -> dict[str, Json]:
        """The recipe as data."""
        return {
            "select": _data(self.select),
            "credit": None if self.credit is None else _data(self.credit),
            "rows": _data(self.rows),
            "system": self.system,
        }

    def freeze(
        self, built: Built, root: Path, *, parents: Sequence[str] = (),
        redact: Redactor | None = None,
    ) -> Dataset:  # fmt: skip
        """Write the rows with their lineage below `root`; `parents` are ids of the datasets and
        policies that this phase goes on from. Raises what `manifest.freeze` raises."""
        spec: dict[str, Json] = {**built.spec, "after": list[Json](parents)}
        return freeze(built.rows, spec, root, redact=redact, chosen=_frozen(built.chosen))

    def again(
        self, directory: Path, load: Callable[[str], Episode | None], *,
        redact: Redactor | None = None,
    ) -> Made:  # fmt: skip
        """The rows that were frozen in `directory`, made again from the log by `load` (an episode
        by its id) and the frozen scores: the same to the byte.

        Raises `UsageError` when this is not the recipe that was frozen, `StoreError` when an
        episode is gone or the directory was damaged.
        """
        spec, kept = read_frozen(directory)
        for key, value in self.spec().items():
            if spec.get(key) != value:
                raise UsageError(f"`{directory}` was made with another `{key}` than this one")
        episodes = []
        for one in kept:
            episode = load(one.id)
            if episode is None:
                raise StoreError(f"episode `{one.id}` of `{directory}` is not in the log any more")
            episodes.append(replace(episode, score=one.score))
        chosen = Chosen(
            episodes=tuple(episodes),
            nearness={one.id: one.nearness for one in kept if one.nearness is not None},
            shares={one.id: one.share for one in kept if one.share is not None},
        )
        return self.make(chosen, redact=redact)


def _frozen(chosen: Chosen) -> list[Frozen]:
    return [
        Frozen(
            id=one.id, score=replace(one.score, feedback="") if one.score else None,
            share=chosen.shares.get(one.id), nearness=chosen.nearness.get(one.id),
        )
        for one in chosen.episodes
    ]  # fmt: skip


def _data(part: Any) -> dict[str, Json]:
    kind = type(part)
    fields = TypeAdapter(kind).dump_python(part, mode="json")
    return {"use": f"{kind.__module__}:{kind.__qualname__}", **fields}


def _resolved(lent: Lent) -> dict[str, Json]:
    """What the conditions that are relative meant on that day."""
    return {"now": lent.now, "versions": list[Json](lent.versions)}


def _parents(episodes: Sequence[Episode]) -> dict[str, Json]:
    versions = {version or BASE for one in episodes for version in policies(one)}
    return {
        "bundles": list[Json](sorted({one.bundle for one in episodes})),
        "policies": list[Json](sorted(versions)),
        "runs": list[Json](sorted({one.run for one in episodes})),
    }
