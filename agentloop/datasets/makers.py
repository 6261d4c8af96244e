"""Rows as parts: what a workflow names to say which kind of rows a phase learns from.

In: what a selection gave, credits where there are any, and the system text to train under. Out:
rows, and how many trajectories gave none, by reason. The work is in `rows`, `rl_rows` and
`preferences`; each part here only holds their settings.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Protocol, runtime_checkable

from pydantic import Field

from agentloop.datasets.credit import Credits
from agentloop.datasets.filters import Chosen
from agentloop.datasets.preferences import Mode, listwise_rows, preference_rows, unpaired_rows
from agentloop.datasets.rl_rows import rl_rows, unusable_for_ratios
from agentloop.datasets.rows import sft_rows, unusable
from agentloop.errors import UsageError
from agentloop.ports import part
from agentloop.records import Row, record
from agentloop.trajectories.redact import Redactor


@record
class Made:
    """Rows, and the trajectories without one."""

    rows: tuple[Row, ...]
    left_out: dict[str, int] = field(default_factory=dict)


@runtime_checkable
class RowMaker(Protocol):
    """Which rows a method learns from."""

    def make(
        self, chosen: Chosen, *, credits: Credits | None = None, system: str = "",
        redact: Redactor | None = None,
    ) -> Made:  # fmt: skip
        """Rows of the chosen episodes, the same for the same arguments; `system` is the text that
        bare prompts get. Raises `UsageError` when credits are needed and not given."""
        ...


@part
class SFTRows:
    """Imitation: bare prompts, every sample learned."""

    def make(
        self, chosen: Chosen, *, credits: Credits | None = None, system: str = "",
        redact: Redactor | None = None,
    ) -> Made:  # fmt: skip
        """See `RowMaker.make`; credits are not read."""
        rows = sft_rows(chosen.episodes, system=system, redact=redact)
        left_out = unusable(chosen.episodes, redact=redact)
        return Made(rows=tuple(rows), left_out={str(why): n for why, n in left_out.items()})


@part
class RLRows:
    """Exact branches with log-probs and advantages."""

    def make(
        self, chosen: Chosen, *, credits: Credits | None = None, system: str = "",
        redact: Redactor | None = None,
    ) -> Made:  # fmt: skip
        """See `RowMaker.make`; the system text is the one that was sampled under."""
        if credits is None:
            raise UsageError("these rows carry advantages; name a `credit` that gives them")
        rows = rl_rows(chosen.episodes, credits, shares=chosen.shares, redact=redact)
        left_out = unusable_for_ratios(chosen.episodes, redact=redact)
        return Made(rows=tuple(rows), left_out={str(why): n for why, n in left_out.items()})


@part
class PreferenceRows:
    """Pairs of a better and a worse episode of one group."""

    mode: Mode = "all"
    margin: Annotated[float, Field(gt=0.0)] | None = None
    bare: bool = False
    """Prompts as messages under the phase's system text, without what was lent."""

    def make(
        self, chosen: Chosen, *, credits: Credits | None = None, system: str = "",
        redact: Redactor | None = None,
    ) -> Made:  # fmt: skip
        """See `RowMaker.make`; credits are not read."""
        rows = preference_rows(
            chosen.episodes, system=system if self.bare else None, mode=self.mode,
            margin=self.margin, redact=redact,
        )  # fmt: skip
        return _labelled(chosen, rows)


@part
class UnpairedRows:
    """Single episodes, labelled right or wrong."""

    bare: bool = False

    def make(
        self, chosen: Chosen, *, credits: Credits | None = None, system: str = "",
        redact: Redactor | None = None,
    ) -> Made:  # fmt: skip
        """See `RowMaker.make`; credits are not read."""
        bare = system if self.bare else None
        return _labelled(chosen, unpaired_rows(chosen.episodes, system=bare, redact=redact))


@part
class ListwiseRows:
    """Groups that have right and wrong episodes, labelled: what a reward model is fitted to."""

    most: Annotated[int, Field(ge=2)] | None = None
    """Of one group, as near to half right as it has them."""
    bare: bool = False

    def make(
        self, chosen: Chosen, *, credits: Credits | None = None, system: str = "",
        redact: Redactor | None = None,
    ) -> Made:  # fmt: skip
        """See `RowMaker.make`; credits are not read."""
        rows = listwise_rows(
            chosen.episodes, system=system if self.bare else None, most=self.most, redact=redact
        )
        return _labelled(chosen, rows)


def _labelled(chosen: Chosen, rows: list[Row]) -> Made:
    used = {row.episode for row in rows}
    without = sum(one.id not in used for one in chosen.episodes)
    return Made(rows=tuple(rows), left_out={"no counterpart or row": without} if without else {})
