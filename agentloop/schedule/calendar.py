"""Which moments are planned, and which of them are due: cron expressions, intervals, missed ones.

In: a rule and moments as Unix seconds. Out: planned moments, which depend on nothing but the rule,
so that two processes, before or after a clock was set, call the same slot by the same name. cronsim
reads the expressions: no dependencies, 600 lines, kept up by the makers of a cron monitor, and it
treats changes of daylight saving time as Debian's cron does (a time that does not exist comes at
the next one that does, a time that comes twice is planned once).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from itertools import islice, takewhile
from operator import ge
from typing import Literal, Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from agentloop.errors import UsageError

Missed = Literal["skip", "once", "all"]
MOST = 100
"""Of the moments that passed, the latest so many can be made up for."""
LATE = 600.0
"""Seconds after which a moment counts as missed by `missed: skip`."""
_LONG = 60 * 366 * 86400.0
_LONGEST = 3660 * 86400.0
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def interval(text: str) -> float:
    """`30m`, `6h`, `1d`, `45s` in seconds, from a second to ten years. Raises `UsageError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 1.0 <= seconds <= _LONGEST:
        raise UsageError(
            f"`{text:.40}` is not an interval; write a number and s, m, h or d, e.g. 6h (from 1s "
            "to 3660d)"
        )
    return seconds


class Timetable(Protocol):
    """Planned moments, in both directions without end."""

    def after(self, moment: float) -> Iterator[float]:
        """Those after `moment`, soonest first."""
        ...

    def upto(self, moment: float) -> Iterator[float]:
        """Those at and before `moment`, latest first."""
        ...

    def anchored(self, start: float) -> Timetable:
        """The same rule, first followed at `start`."""
        ...


@dataclass(frozen=True)
class Every:
    """`start`, and every `seconds` seconds before and after it."""

    seconds: float
    start: float = 0.0

    def __str__(self) -> str:
        return f"every {self.seconds:g} s"

    def after(self, moment: float) -> Iterator[float]:
        """As `Timetable`."""
        number = math.floor(round((moment - self.start) / self.seconds, 6)) + 1
        while True:
            yield self._at(number)
            number += 1

    def upto(self, moment: float) -> Iterator[float]:
        """As `Timetable`."""
        number = math.floor(round((moment - self.start) / self.seconds, 6))
        while True:
            yield self._at(number)
            number -= 1

    def anchored(self, start: float) -> Every:
        """As `Timetable`: the first cycle begins at once."""
        return Every(self.seconds, start)

    def _at(self, number: int) -> float:
        return round(self.start + number * self.seconds, 3)


@dataclass(frozen=True)
class Cron:
    """The moments of a cron expression of five fields, on the clocks of `timezone`."""

    expression: str
    timezone: str = "UTC"

    def __str__(self) -> str:
        return f"cron `{self.expression}` {self.timezone}"

    def __post_init__(self) -> None:
        if len(self.expression.split()) != 5:
            raise UsageError(
                f"`{self.expression}` is not a cron expression; write five fields (minute, hour, "
                'day of the month, month, day of the week), e.g. "0 3 * * *"'
            )
        try:
            if next(self.after(0.0), None) is None:
                raise UsageError(f"the cron expression `{self.expression}` never comes true")
        except CronSimError as error:
            raise UsageError(
                f"`{self.expression}` is not a cron expression ({str(error).lower()}); "
                'e.g. "0 3 * * *" is every day at 3:00'
            ) from None

    @cached_property
    def _zone(self) -> ZoneInfo:
        try:
            return ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError):
            raise UsageError(
                f"`{self.timezone}` is not a time zone known here; write one like Europe/Berlin, "
                "or UTC (pip install tzdata where the system has none)"
            ) from None

    def anchored(self, start: float) -> Cron:
        """As `Timetable`; it makes no difference."""
        return self

    def after(self, moment: float) -> Iterator[float]:
        """As `Timetable`; ends where nothing is planned for fifty years."""
        begin = datetime.fromtimestamp(math.floor(moment), self._zone)
        for planned in CronSim(self.expression, begin):
            # In an hour that the clocks go through twice the first time may be behind already.
            if planned.timestamp() > moment:
                yield planned.timestamp()

    def upto(self, moment: float) -> Iterator[float]:
        """As `Timetable`, for sixty years. By looking forward from earlier and earlier: cronsim's
        own way back plans other moments where clocks leap."""
        end, width = moment, 7200.0
        while end > moment - _LONG:
            begin = end - width
            ahead = takewhile(partial(ge, end), self.after(begin))
            yield from reversed(list(ahead))
            end, width = begin, width * 2


@dataclass(frozen=True)
class Calendar:
    """A timetable (or none, where only triggers start cycles) and what to do about missed ones."""

    timetable: Timetable | None
    missed: Missed = "once"

    @property
    def rule(self) -> str:
        """The timetable in words; empty where there is none."""
        return str(self.timetable) if self.timetable else ""

    def anchored(self, start: float) -> Calendar:
        """As it is where its rule was first followed at `start`."""
        return replace(self, timetable=self.timetable.anchored(start)) if self.timetable else self

    def next(self, now: float, n: int = 1) -> list[float]:
        """The next `n` planned moments after `now`."""
        return list(islice(self.timetable.after(now), n)) if self.timetable else []

    def due(self, since: float, now: float) -> list[float]:
        """The planned moments in (since, now], oldest first; the latest `MOST` of them,
        and one more where there are more."""
        found: list[float] = []
        for moment in self.timetable.upto(now) if self.timetable else ():
            if moment <= since or len(found) > MOST:
                break
            found.append(moment)
        return found[::-1]

    def choose(self, due: list[float], now: float) -> tuple[float | None, list[float]]:
        """Of the moments that are due (and not taken): the one to run now, and those that are given
        up before it."""
        if not due:
            return None, []
        if self.missed == "all":
            return due[-MOST:][0], due[:-MOST]
        if self.missed == "skip" and now - due[-1] > LATE:
            return None, due
        return due[-1], due[:-1]


def calendar_of(*, cron: str, timezone: str, every: str, missed: Missed, needed: bool) -> Calendar:
    """The calendar that a workflow or a command line asks for; without a clock, and `needed`
    because no trigger is given either, a cycle a day. Raises `UsageError`."""
    if cron and every:
        raise UsageError("`cron` and `every` are two clocks; give one of them")
    timetable: Timetable | None = Cron(cron, timezone) if cron else None
    if every or (timetable is None and needed):
        timetable = Every(interval(every or "1d"))
    return Calendar(timetable, missed)


def iso(moment: float) -> str:
    """`2026-11-23T03:00:00Z`."""
    text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    return text.removesuffix("+00:00").removesuffix(".000") + "Z"
