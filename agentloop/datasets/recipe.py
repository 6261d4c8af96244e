"""A phase's data, from the log to a frozen dataset, and again from what was frozen.

In: episodes, and the three parts select, credit, rows. Out: `Built` (rows and why others are not
there), a `Dataset` with its whole lineage, and from that, with `again`, the same rows once more.
Two decisions. What a late signal could change is frozen beside the rows: the score of each episode
that was chosen or compared with, its group's share, its nearness; later scores and a rebuilt index
do not move a phase. And whether data is the same is told by its bytes, not by how it is described.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from pydantic import TypeAdapter

from agentloop.datasets.credit import Credit
from agentloop.datasets.filters import BASE, Chosen, Filters, Lent
from agentloop.datasets.groups import policies
from agentloop.datasets.makers import Made, RowMaker
from agentloop.datasets.manifest import Frozen, freeze, read_frozen, sha256_of
from agentloop.errors import StoreError, UsageError
from agentloop.records import Dataset, Episode, Json, Row, content_id
from agentloop.trajectories.codec import to_json
from agentloop.trajectories.redact import Redactor

_FILE = "_agentloop_ref_"
"""How `refs.load_file` begins the name of the module that it makes of a file."""


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
        """The rows of episodes that are chosen already, paid by comparison with whole groups."""
        compared = chosen.members or chosen.episodes
        credits = None if self.credit is None else self.credit.assign(compared)
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
        training: Mapping[str, Json] | None = None, redact: Redactor | None = None,
    ) -> Dataset:  # fmt: skip
        """Write the rows with their lineage below `root`; `parents` are ids of the datasets and
        policies that this phase goes on from, `training` is how the rows are learned from (method,
        settings, seed, base model, parent policy). Raises what `manifest.freeze` raises."""
        spec: dict[str, Json] = {
            **built.spec, "after": list[Json](parents), "training": dict(training or {}),
        }  # fmt: skip
        kept = _frozen(built.chosen, () if self.credit is None else built.chosen.members)
        return freeze(built.rows, spec, root, redact=redact, chosen=kept)

    def again(
        self, directory: Path, load: Callable[[str], Episode | None], *,
        redact: Redactor | None = None,
    ) -> Made:  # fmt: skip
        """The rows that were frozen in `directory`, made again from the log by `load` (an episode
        by its id) and the frozen scores: the same to the byte. Nothing is selected, so how it was
        does not matter; nor does a system text or a credit that the rows do not hold.

        Raises `UsageError` when another recipe gives other rows, `StoreError` when this one does,
        an episode is gone or the directory was damaged.
        """
        dataset, kept = read_frozen(directory)
        members = []
        for one in kept:
            episode = load(one.id)
            if episode is None:
                raise StoreError(f"episode `{one.id}` of `{directory}` is not in the log any more")
            members.append(replace(episode, score=one.score))
        chosen = Chosen(
            episodes=tuple(each for each, one in zip(members, kept, strict=True) if one.chosen),
            members=tuple(members),
            nearness={one.id: one.nearness for one in kept if one.nearness is not None},
            shares={one.id: one.share for one in kept if one.share is not None},
        )
        made = self.make(chosen, redact=redact)
        if sha256_of(made.rows) != dataset.sha256:
            self._explain(directory, dataset)
        return made

    def _explain(self, directory: Path, dataset: Dataset) -> NoReturn:
        """Why this recipe does not give the rows of `dataset`."""
        for key, value in self.spec().items():
            if key != "select" and dataset.spec.get(key) != value:
                raise UsageError(f"`{directory}` was made with another `{key}` than this one")
        raise StoreError(f"the rows of `{directory}` cannot be made again from this log")


def _frozen(chosen: Chosen, members: Sequence[Episode]) -> list[Frozen]:
    """The chosen and, of `members`, those that they were compared with."""
    ids = {one.id for one in chosen.episodes}
    others = (one for one in members if one.id not in ids)
    return [
        Frozen(
            id=one.id, score=replace(one.score, feedback="") if one.score else None,
            share=chosen.shares.get(one.id), nearness=chosen.nearness.get(one.id),
            chosen=one.id in ids,
        )
        for one in (*chosen.episodes, *others)
    ]  # fmt: skip


def _data(part: Any) -> dict[str, Json]:
    """A part as data. A module of a file is named by its content: a copy elsewhere is the same."""
    kind = type(part)
    fields = TypeAdapter(kind).dump_python(part, mode="json")
    return {"use": f"{_module(kind)}:{kind.__qualname__}", **fields}


def _module(kind: type[Any]) -> str:
    module = sys.modules[kind.__module__]
    if not module.__name__.startswith(_FILE) or module.__file__ is None:
        return module.__name__
    path = Path(module.__file__)
    return f"{path.name}@{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


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
