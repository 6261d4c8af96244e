"""The gate that stops early: when it stops, why, and what its verdict says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from gate_fixtures import FAILED, RIGHT, WRONG, episode, numbered
from hypothesis import given, settings
from hypothesis import strategies as st

from agentloop.errors import UsageError
from agentloop.gates.sequential import Sequential
from agentloop.ports import Gate
from agentloop.records import Episode, Task, Verdict
from agentloop.trajectories.codec import decode, encode


def judged(
    before: str, after: str, gate: Sequential = Sequential(), *, share: float = 1.0,
    tokens: tuple[int, int] = (100, 100),
) -> tuple[Verdict, list[tuple[str, int]]]:  # fmt: skip
    """The verdict, and which bundle was asked for how many tasks, in order."""
    marks = {"old": (before, tokens[0]), "new": (after, tokens[1])}
    asked: list[tuple[str, int]] = []

    async def evaluate(bundle: str, tasks: Sequence[Task]) -> list[Episode]:
        asked.append((bundle, len(tasks)))
        told, each = marks[bundle]
        return [episode(t, bundle, told[int(t.id[1:])], each) for t in tasks]

    judging = gate.judge(
        "joint", champion="old", challenger="new", tasks=numbered(len(before)),
        evaluate=evaluate, share=share,
    )  # fmt: skip
    return asyncio.run(judging), asked


def test_a_clear_gain_is_found_in_one_batch() -> None:
    assert isinstance(Sequential(), Gate)
    verdict, asked = judged(WRONG * 256, RIGHT * 256)
    assert asked == [("old", 16), ("new", 16)]
    assert verdict.passed and verdict.stopped == "better"
    assert verdict.reason.startswith("better: 16 won, 0 lost of 16")
    assert (verdict.n, verdict.planned, verdict.effect, verdict.alpha) == (16, 256, 1.0, 0.05)
    assert verdict.evidence["better"] >= 20 and verdict.p == 1 / verdict.evidence["better"]
    assert verdict.ci95[0] > 0.3 and verdict.ci95[1] == 1.0
    assert len(verdict.outcomes) == 16 and decode(Verdict, encode(verdict)) == verdict


def test_its_share_of_alpha_is_what_must_be_reached() -> None:
    half = WRONG * 64, (RIGHT + WRONG) * 32
    whole, _ = judged(*half)
    small, asked = judged(*half, share=0.01)
    assert whole.n == 16 < small.n and small.alpha == pytest.approx(0.0005)
    assert whole.passed and small.passed and small.evidence["better"] >= 2000
    assert len(asked) == 2 * small.n / 16


def test_harm_stops_it() -> None:
    verdict, _ = judged(RIGHT * 256, (WRONG + RIGHT) * 128)
    assert (verdict.passed, verdict.n) == (False, 16)
    assert verdict.stopped in ("worse", "futile") and verdict.ci95[1] < 0
    verdict, _ = judged(RIGHT * 256, WRONG * 256, Sequential(power=0.999999))
    assert verdict.stopped == "worse" and verdict.reason.startswith("worse: 0 won, 16 lost of 16")


def test_no_effect_worth_the_trouble_stops_it() -> None:
    marks = ("10" + RIGHT * 14) * 16, ("01" + RIGHT * 14) * 16
    verdict, _ = judged(*marks)
    assert verdict.stopped == "futile" and 64 <= verdict.n < 256 and not verdict.passed
    assert verdict.evidence["below_min_effect"] >= 10 > verdict.evidence["better"]
    surer, _ = judged(*marks, Sequential(power=0.99))
    assert surer.n > verdict.n  # gives up fewer of those that are good


def test_all_tasks_used_is_the_end() -> None:
    verdict, _ = judged("1100" * 8, "1010" * 8)
    assert (verdict.stopped, verdict.n, verdict.planned) == ("limit", 32, 32)
    assert verdict.reason.startswith("no proven gain") and "20 are needed" in verdict.reason


def test_a_proven_gain_below_the_least_useful_one_goes_on_to_the_end() -> None:
    """Five in a hundred, and nothing lost: surely better, and not worth a promotion."""
    marks = (RIGHT + WRONG * 19) * 40
    verdict, _ = judged(WRONG * 800, marks, Sequential(power=1 - 1e-9))
    assert verdict.evidence["better"] >= 20 and verdict.effect == pytest.approx(0.05)
    assert not verdict.passed and verdict.reason.startswith("gain below 10%")
    assert judged(WRONG * 800, marks, Sequential(min_effect=0.04))[0].passed


def test_a_cheaper_one_passes_when_it_is_proven_not_to_be_worse() -> None:
    same = (RIGHT + WRONG) * 128
    verdict, _ = judged(same, same, tokens=(100, 80))
    assert verdict.passed and verdict.stopped == "cheaper" and "80% of the tokens" in verdict.reason
    assert verdict.n < 180 and verdict.evidence["not_worse"] >= 20
    assert not judged(same, same, tokens=(100, 81))[0].passed
    worse = "1111111110" * 25 + "111111"
    assert not judged(RIGHT * 256, worse, tokens=(100, 10))[0].passed  # 10 points


def test_pairs_without_the_champion_are_left_out_and_a_dead_challenger_is_wrong() -> None:
    verdict, _ = judged(FAILED * 4 + WRONG * 28, RIGHT * 32)
    assert (verdict.n, verdict.excluded, verdict.passed) == (12, 4, True)
    assert "(4 pairs excluded: infrastructure)" in verdict.reason
    dead, _ = judged(RIGHT * 32, FAILED * 32)
    assert (dead.stopped, dead.n, dead.effect) == ("refused", 16, -1.0)
    assert dead.reason.startswith("refused: 16 of its 16 rollouts came to no score")
    half, _ = judged(WRONG * 32, FAILED * 8 + RIGHT * 24, Sequential(batch=32))
    assert half.passed  # a few that failed are wrong there, as they were before
    few, _ = judged(FAILED * 32, RIGHT * 32)
    assert (few.stopped, few.n, few.passed) == ("limit", 0, False)
    assert few.reason.startswith("only 0 of 32 pairs are valid") and few.ci95 == (-1.0, 1.0)


@pytest.mark.parametrize(
    "wrong", [{"alpha": 0}, {"power": 1}, {"min_effect": 1.0}, {"tokens_saving": -0.1}]
)
def test_settings_that_cannot_work(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="out of range"):
        judged("1", "1", Sequential(**wrong))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no held-out tasks"):
        judged("", "")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["00", "01", "10", "11", "x1", "0x"]), min_size=1, max_size=60))
def test_the_numbers_agree_with_each_other(pairs: list[str]) -> None:
    verdict, _ = judged("".join(p[0] for p in pairs), "".join(p[1] for p in pairs))
    assert verdict.n + verdict.excluded <= verdict.planned == len(pairs)
    assert verdict.n == len(verdict.outcomes) and 0 < verdict.p <= 1
    assert verdict.effect == pytest.approx(verdict.challenger_rate - verdict.champion_rate)
    assert verdict.ci95[0] <= verdict.effect + 1e-9 and verdict.effect <= verdict.ci95[1] + 1e-9
    assert not verdict.passed or verdict.effect >= 0.1


def test_a_challenger_far_worse_and_far_cheaper_stays_out() -> None:
    """More than the margin worse: both ways to pass together are kept below alpha."""
    rng = np.random.default_rng(4)
    passed = 0
    for _ in range(150):
        before, after = rng.random(256) < 0.5, rng.random(256) < 0.46
        marks = ["".join(str(int(hit)) for hit in hits) for hits in (before, after)]
        passed += judged(marks[0], marks[1], tokens=(100, 50))[0].passed
    assert passed <= 12  # 97.5 % limit of 150 at 0.05
