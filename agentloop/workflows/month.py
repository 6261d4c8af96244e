"""What the cycles of a calendar month have used, for a budget that holds over all of them.

In: the log and a workflow. Out: what is left of its `budget.month`. A cycle counts in the month
(UTC) that it began in, whoever started it and whenever it is finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from agentloop.errors import BudgetReached
from agentloop.lanes.gated import rollouts_of
from agentloop.records import Budget
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.workflows.schema import Budgets
from agentloop.workflows.seconds import seconds_of

Used = dict[str, float]
"""By the names of `Budget`: usd, tokens, seconds, rollouts."""


@dataclass
class Ledger:
    """What the cycles of one workflow and home used, month by month."""

    archive: Archive
    workflow: str
    now: Callable[[], float] = time.time

    def left(self, month: Budget, cycle: str = "") -> Budget:
        """What the month's budget leaves for `cycle`, which is what other cycles have not used of
        it; without a name, for one that would begin now. Never below 0; `None` is no limit."""
        limits = asdict(month)
        if not any(limit is not None for limit in limits.values()):
            return Budget()
        used = self.used(cycle, seconds=month.seconds is not None)
        return replace(month, **{
            name: max(0, limit - used[name]) for name, limit in limits.items() if limit is not None
        })  # fmt: skip

    def within(self, budget: Budgets, cycle: str = "") -> Budget:
        """The cycle's own budget and what the month leaves for it, whichever is less. Raises
        `BudgetReached`, with what was used, when the month leaves nothing."""
        limits, left = asdict(budget.month), asdict(self.left(budget.month, cycle))
        for name, rest in left.items():
            if rest is not None and rest <= 0:
                begin, end = month_of(self._began(cycle))
                raise BudgetReached(
                    f"the month's budget of {limits[name]:g} {name} is used by the cycles of "
                    f"`{self.workflow}` since {begin:%Y-%m-%d}; raise `budget.month.{name}`, or "
                    f"wait until {end:%Y-%m-%d}"
                )
        own = asdict(budget)
        least = {name: _least(own[name], rest) for name, rest in left.items()}
        return Budget(**least)

    def used(self, besides: str = "", *, seconds: bool = True) -> Used:
        """By all cycles that began in the month of `besides` (of now, without one), but it."""
        month = month_of(self._began(besides))
        total = dict.fromkeys(asdict(Budget()), 0.0)
        for entry in self.archive.read(Query(kinds=("cycle",), scope=self.workflow)):
            if entry.key != besides and month_of(entry.at) == month:
                for name, value in self._by(entry.key, seconds=seconds).items():
                    total[name] += value
        return total

    def _by(self, cycle: str, *, seconds: bool) -> Used:
        report: Any = self.archive.step(cycle, "report")
        used: Used = {"rollouts": rollouts_of(self.archive, cycle)}
        if report is None:
            spent = self.archive.spent(cycle)
            used |= {"usd": spent.usd, "tokens": spent.tokens}
        else:
            used |= {"usd": report["cost"]["usd"], "tokens": report["cost"]["tokens"]}
        guessed = self.archive.unconfirmed(cycle)
        used["usd"] += guessed.usd
        used["tokens"] += guessed.tokens
        if seconds:
            used["seconds"] = seconds_of(self.archive, cycle)
        return used

    def _began(self, cycle: str) -> float:
        entry = self.archive.log.get("cycle", cycle) if cycle else None
        return entry.at if entry else self.now()


def month_of(at: float) -> tuple[datetime, datetime]:
    """The first moment of the calendar month (UTC) that has `at`, and of the one after it."""
    moment = datetime.fromtimestamp(at, UTC)
    begin = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    year, month = divmod(begin.year * 12 + begin.month, 12)
    return begin, begin.replace(year=year, month=month + 1)


def _least(one: float | None, other: float | None) -> Any:
    return min((value for value in (one, other) if value is not None), default=None)
