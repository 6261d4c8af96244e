"""Every guard stops at its threshold, not before it, and says what to change."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import TrainingError, UsageError
from agentloop.training.guards import Guards, GuardSettings
from agentloop.training.preference_settings import DPOSettings
from agentloop.training.settings import settings_of


@pytest.mark.parametrize("name", ["loss", "grad_norm", "kl", "entropy", "length", "hack_rate"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stops_at_once(name: str, value: float) -> None:
    guards = Guards()
    guards.watch(1, {"loss": 1.0})
    with pytest.raises(TrainingError, match=r"became -?(nan|inf) at step 2; lower the learning"):
        guards.watch(2, {"loss": 1.0} | {name: value})


CASES = [
    ("kl", [0.1, 1.1, 1.1, 1.1], "left its reference at step 4: 1.1, and the limit is 1, 3"),
    ("entropy", [2.0, 2.0, 2.0, 0.03, 0.03, 0.03], "entropy collapsed at step 6"),
    (
        "length",
        [10, 12, 14, 49, 49, 49],
        "grew too long at step 6: 49, and the limit is 48",
    ),
    ("hack_rate", [0.0, 0.3, 0.3, 0.3], "gamed their reward at step 4"),
]


@pytest.mark.parametrize(("name", "values", "says"), CASES)
def test_each_stops_at_its_threshold_after_so_many_readings(
    name: str, values: list[float], says: str
) -> None:
    guards = Guards()
    for step, value in enumerate(values[:-1], start=1):
        guards.watch(step, {"loss": 1.0, name: value})
    with pytest.raises(TrainingError, match=says) as stopped:
        guards.watch(len(values), {"loss": 1.0, name: values[-1]})
    assert "the dataset and the log are as they were" in str(stopped.value)
    assert f"guards.{[*GuardSettings.model_fields][[n for n, *_ in CASES].index(name)]}" in str(
        stopped.value
    )


@pytest.mark.parametrize(("name", "values", "says"), CASES)
def test_one_good_reading_starts_the_count_again(name: str, values: list[float], says: str) -> None:
    guards = Guards()
    for step, value in enumerate([*values[:-1], values[0], *values[-2:]], start=1):
        guards.watch(step, {name: value})


@pytest.mark.parametrize(("name", "values", "says"), CASES)
def test_a_guard_can_be_turned_off(name: str, values: list[float], says: str) -> None:
    off = GuardSettings(max_kl=None, min_entropy=None, max_growth=None, max_hack_rate=None)
    guards = Guards(off)
    for step, value in enumerate(values * 2, start=1):
        guards.watch(step, {name: value})


@given(st.lists(st.floats(0.05, 1.0), max_size=40), st.integers(1, 4))
def test_what_stays_within_never_stops(values: list[float], patience: int) -> None:
    guards = Guards(GuardSettings(patience=patience, max_growth=20.0))
    for step, value in enumerate(values, start=1):
        guards.watch(step, dict.fromkeys(("kl", "entropy", "length"), value) | {"odd": math.nan})


@pytest.mark.parametrize("planned", [1, 2, 3])
def test_a_phase_of_few_updates_has_less_patience(planned: int) -> None:
    guards = Guards(planned=planned)
    for step in range(1, planned):
        guards.watch(step, {"kl": 0.1, "entropy": 2.0})
    with pytest.raises(TrainingError, match=f"left its reference at step {planned}: 9, and the"):
        guards.watch(planned, {"kl": 9.0})
    if planned > 1:
        with pytest.raises(TrainingError, match="entropy collapsed"):
            guards.watch(planned, {"entropy": 0.01})


def test_a_phase_of_many_updates_has_the_patience_that_was_set() -> None:
    assert [Guards(planned=many).patience for many in (0, 4, 5, 6, 100)] == [3, 2, 2, 3, 3]


def test_thresholds_are_settings_of_a_method() -> None:
    found = settings_of(DPOSettings, {"guards": {"max_kl": 0.5, "patience": 1}}).guards
    assert (found.max_kl, found.patience, found.max_growth) == (0.5, 1, 4.0)
    with pytest.raises(UsageError, match=r"guards\.max_k"):
        settings_of(DPOSettings, {"guards": {"max_k": 0.5}})
    with pytest.raises(UsageError, match=r"guards\.max_kl"):
        settings_of(DPOSettings, {"guards": {"max_kl": -1}})


def test_a_rollout_loop_is_guarded_without_torch(tmp_path: Path) -> None:
    """Lengths and hack rates come from rollouts, in a process that must not load torch."""
    import subprocess
    import sys

    code = "import agentloop.training.guards, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
