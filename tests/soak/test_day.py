"""Twenty-four hourly cycles of 200 runs with faults of the API, a crash an hour, a full disk and a
clock that is set back: nothing lost, nothing twice. And the same day in one process that lives
through it: nothing leaks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from day import Day, shown, slope

WARM = 6
"""Slots that do not count towards the slope: caches fill, and the log grows its first pages."""


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_two_hours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    day = Day(tmp_path, runs=40)
    day.run(2, disk=0, jump=1)
    figures = day.check(2)
    with capsys.disabled():
        print(f"\n{time.monotonic() - began:.0f} s: {shown(figures)}")
    assert figures["kills"] == 2 and figures["full disks"] == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_day(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    day = Day(tmp_path, runs=220, seed=1)
    day.run(24, disk=9, jump=15)
    figures, seconds = day.check(24), time.monotonic() - began
    with capsys.disabled():
        print(f"\n{seconds:.0f} s: {shown(figures)}")
    assert seconds < 1200
    assert figures["kills"] == 24 and figures["clock jumps"] == figures["full disks"] == 1
    assert figures["refused"] >= 1, "the disk was never seen to be full"
    assert figures["least runs of a cycle"] >= 200
    assert figures["faults"] >= 0.03 * figures["calls"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_day_in_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    day = Day(tmp_path, runs=220, seed=2)
    day.run(24, crash=False)
    figures, seconds = day.check(24), time.monotonic() - began
    warm = day.samples[WARM:]
    runs = figures["runs"] / 24
    rise = slope([one["rss"] for one in warm], runs)
    with capsys.disabled():
        print(f"\n{seconds:.0f} s: {shown(figures)}")
        print(f"RSS {[one['rss'] // 1024 for one in day.samples]} MiB, {rise:+.3f} per 1,000 runs")
        print(f"first {warm[0]}\nlast  {warm[-1]}")
    assert seconds < 1200
    assert rise < 1.0
    for name in ("threads", "descriptors", "children", "temp", "mounts"):
        assert warm[-1][name] <= max(warm[0][name], warm[1][name]), name
