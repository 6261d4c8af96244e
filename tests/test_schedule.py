"""Cycles at an interval: counting goes on after a restart, one scheduler per workflow and home."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop import schedule
from agentloop.errors import StoreError, UsageError
from agentloop.store.archive import Archive


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("30m", 1800), ("6h", 21600), ("1d", 86400), ("1.5h", 5400)]
)
def test_intervals(text: str, seconds: float) -> None:
    assert schedule.interval(text) == schedule.interval(f" {text} ") == seconds


@given(st.text(max_size=6))
def test_what_is_no_interval_is_refused(text: str) -> None:
    try:
        assert schedule.interval(text) > 0
    except UsageError as error:
        assert "6h" in str(error)


@pytest.mark.parametrize("text", ["0m", "-1h", "5", "h", "", "1w", "1e3s"])
def test_wrong_intervals(text: str) -> None:
    with pytest.raises(UsageError):
        schedule.interval(text)


def test_slots_are_numbered_on_after_a_restart(archive: Archive) -> None:
    seen: list[int] = []

    def cycle(number: int) -> str:
        seen.append(number)
        return "kept"

    assert schedule.run(archive, "w", cycle, every=0.0, cycles=2) == 2
    assert schedule.run(archive, "w", cycle, every=0.0, cycles=1) == 1
    assert schedule.run(archive, "other", cycle, every=0.0, cycles=1) == 1
    assert seen == [0, 1, 2, 0]


def test_a_cycle_that_fails_is_the_next_to_run(archive: Archive) -> None:
    """Its slot is not taken, so the same seed comes again and the unfinished cycle is resumed."""
    seen: list[int] = []

    def cycle(number: int) -> str:
        seen.append(number)
        if len(seen) == 2:
            raise StoreError("the disk is full")
        return "kept"

    with pytest.raises(StoreError):
        schedule.run(archive, "w", cycle, every=0.0, cycles=3)
    schedule.run(archive, "w", cycle, every=0.0, cycles=2)
    assert seen == [0, 1, 1, 2]


def test_one_scheduler_at_a_time_and_the_lease_is_given_back(archive: Archive) -> None:
    def nested(number: int) -> str:
        with pytest.raises(StoreError, match="held by"):
            schedule.run(archive, "w", lambda _: "kept", every=0.0, cycles=1)
        return "kept"

    assert schedule.run(archive, "w", nested, every=0.0, cycles=1) == 1
    assert schedule.run(archive, "w", lambda _: "kept", every=0.0, cycles=1) == 1


def test_the_interval_counts_from_the_start_of_a_cycle(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    def cycle(number: int) -> str:
        now[0] += 4.0 if number == 0 else 15.0  # the second overruns its interval
        return "kept"

    monkeypatch.setattr("agentloop.schedule.time.sleep", sleep)
    monkeypatch.setattr("agentloop.schedule.time.monotonic", lambda: now[0])
    schedule.run(archive, "w", cycle, every=10.0, cycles=3)
    assert slept == [6.0, 0.0]
