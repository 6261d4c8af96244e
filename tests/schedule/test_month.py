"""The budget of a month: what is counted, what is left of it, who is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import BudgetReached
from agentloop.records import Budget, Completion, Message, Usage
from agentloop.store.archive import Archive
from agentloop.store.query import Draft
from agentloop.trajectories.codec import to_json
from agentloop.workflows.month import Ledger, month_of
from agentloop.workflows.schema import Budgets

NOVEMBER = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
DAY = 86400.0


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive(tmp_path) as opened:
        yield opened


def cycle(
    archive: Archive, name: str, *, at: float, tokens: int = 0, report: int | None = None,
    rollouts: int = 0, workflow: str = "w",
) -> None:  # fmt: skip
    """A cycle as the log has it: calls of so many tokens at 0.001 usd each, and its report."""
    archive.log.append([Draft(kind="cycle", key=name, body={}, scope=workflow, at=at)])
    reply = Completion(
        message=Message(role="assistant", content="x"), finish_reason="stop", model="m",
        usage=Usage(prompt_tokens=1, usd=0.001, calls=1),
    )  # fmt: skip
    for number in range(tokens):
        asyncio.run(archive.add_call(f"{name}/{number}", reply, scope=name))
    for number in range(rollouts):
        from live_episodes import live

        one = {**to_json(live(number)), "id": f"ep-{name}-{number}", "run": name}
        archive.log.append([Draft(kind="episode", key=one["id"], body=one, scope=workflow)])
    if report is not None:
        cost = {"usd": report / 1000, "tokens": report, "seconds": 1.0}
        archive.add_step(name, "report", {"cost": cost})


def test_what_is_left(archive: Archive) -> None:
    ledger = Ledger(archive, "w", now=lambda: NOVEMBER)
    month = Budget(tokens=100, usd=0.1, rollouts=50)
    assert ledger.left(month) == month
    cycle(archive, "october", at=NOVEMBER - 30 * DAY, report=90)
    cycle(archive, "other", at=NOVEMBER, report=90, workflow="other")
    assert ledger.left(month) == month
    cycle(archive, "one", at=NOVEMBER - DAY, report=40, rollouts=20)
    cycle(archive, "two", at=NOVEMBER, tokens=5, rollouts=1)  # unfinished: its calls are read
    left = ledger.left(month)
    assert (left.tokens, left.rollouts) == (55, 29) and left.usd == pytest.approx(0.055)
    assert ledger.left(month, "two").tokens == 60  # its own are its meter's business
    assert ledger.left(month, "october").tokens == 100  # of its own month
    assert ledger.left(Budget()) == Budget()
    asyncio.run(archive.add_unanswered(Usage(prompt_tokens=3, usd=0.001), False, scope="one"))
    assert ledger.left(month).tokens == 52  # it may be on the bill


def test_the_least_of_both_holds(archive: Archive) -> None:
    ledger = Ledger(archive, "w", now=lambda: NOVEMBER)
    cycle(archive, "one", at=NOVEMBER, report=40)
    both = Budgets(tokens=30, rollouts=7, month=Budget(tokens=100, usd=1.0))
    assert ledger.within(both) == Budget(tokens=30, rollouts=7, usd=0.96)
    assert ledger.within(Budgets(tokens=80, month=Budget(tokens=100))) == Budget(tokens=60)
    assert ledger.within(Budgets(tokens=80)) == Budget(tokens=80)


def test_a_used_month_is_one_sentence(archive: Archive) -> None:
    ledger = Ledger(archive, "w", now=lambda: NOVEMBER)
    cycle(archive, "one", at=NOVEMBER, report=100)
    with pytest.raises(BudgetReached) as told:
        ledger.within(Budgets(month=Budget(tokens=100)))
    assert str(told.value) == (
        "the month's budget of 100 tokens is used by the cycles of `w` since 2026-11-01; raise "
        "`budget.month.tokens`, or wait until 2026-12-01"
    )
    assert Ledger(archive, "w", now=lambda: NOVEMBER + 10 * DAY).left(Budget(tokens=9)).tokens == 9


def test_seconds_are_those_between_the_notes_of_processes(archive: Archive) -> None:
    cycle(archive, "one", at=NOVEMBER, report=1)
    for kind, at in (("process_begun", 100.0), ("process_ended", 160.0)):
        archive.log.append([
            Draft(kind=kind, key="one/0", body=None, scope="one", at=NOVEMBER + at)
        ])  # fmt: skip
    ledger = Ledger(archive, "w", now=lambda: NOVEMBER)
    assert ledger.left(Budget(seconds=100.0)).seconds == pytest.approx(40.0)


@given(st.floats(0, 4e9))
def test_months_hold_their_moments(at: float) -> None:
    begin, end = month_of(at)
    assert begin.timestamp() <= at < end.timestamp() and begin.day == end.day == 1
    assert 28 <= (end - begin).days <= 31 and month_of(end.timestamp())[0] == end
