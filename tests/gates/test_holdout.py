"""The gate: who passes, who does not, and how often chance passes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import numpy as np
import pytest
from gate_fixtures import FAILED, RIGHT, WRONG, episode, numbered
from hypothesis import given, settings
from hypothesis import strategies as st

from agentloop.errors import UsageError
from agentloop.gates.exact import sign_test
from agentloop.gates.holdout import Holdout
from agentloop.ports import Gate
from agentloop.records import Episode, Task, Verdict
from agentloop.trajectories.codec import decode, encode


def _judge(gate: Holdout, before: str, after: str, tokens: tuple[int, int] = (100, 100)) -> Verdict:
    marks = {"old": (before, tokens[0]), "new": (after, tokens[1])}
    asked: list[str] = []

    async def evaluate(bundle: str, tasks: Sequence[Task]) -> list[Episode]:
        asked.append(bundle)
        told, each = marks[bundle]
        made = [episode(t, bundle, told[int(t.id[1:])], each) for t in tasks]
        return made[::-1] if bundle == "new" else made  # pairs are found by id, not by place

    verdict = asyncio.run(
        gate.judge(
            "joint",
            champion="old",
            challenger="new",
            tasks=numbered(len(before)),
            evaluate=evaluate,
        )
    )
    assert asked == ["old", "new"]
    return verdict


def test_a_better_challenger_passes_with_its_raw_numbers() -> None:
    assert isinstance(Holdout(), Gate)
    verdict = _judge(Holdout(), RIGHT * 4 + WRONG * 12, RIGHT * 3 + WRONG + RIGHT * 10 + WRONG * 2)
    assert verdict.passed and verdict.reason.startswith("better: 10 won, 1 lost of 16")
    assert (verdict.n, verdict.champion_rate, verdict.challenger_rate) == (16, 4 / 16, 13 / 16)
    assert verdict.effect == 9 / 16 and verdict.p == sign_test(10, 1)
    assert verdict.ci95[0] < verdict.effect < verdict.ci95[1]
    assert verdict.outcomes[0] == ("t0", 1, 1) and verdict.outcomes[3] == ("t3", 1, 0)
    assert (verdict.subject, verdict.champion, verdict.challenger) == ("joint", "old", "new")
    assert decode(Verdict, encode(verdict)) == verdict


def test_worse_equal_and_unproven_challengers_are_kept_out() -> None:
    worse = _judge(Holdout(), RIGHT * 64, WRONG * 10 + RIGHT * 54)
    assert not worse.passed and worse.reason.startswith("worse")
    assert not _judge(Holdout(), "10" * 32, "10" * 32).passed
    lucky = _judge(Holdout(), WRONG * 64, RIGHT * 5 + WRONG * 59)
    assert not lucky.passed and lucky.reason.startswith("no proven gain")
    assert _judge(Holdout(), WRONG * 64, RIGHT * 6 + WRONG * 58).passed


def test_a_proven_gain_below_the_least_useful_one_is_kept_out() -> None:
    gate = Holdout(min_effect=0.2)
    small = _judge(gate, WRONG * 64, RIGHT * 12 + WRONG * 52)
    assert not small.passed and "gain below 20.0%" in small.reason
    assert _judge(gate, WRONG * 64, RIGHT * 13 + WRONG * 51).passed


def test_a_cheaper_one_passes_when_it_is_not_worse() -> None:
    def judge(lost: int, tokens: int) -> Verdict:
        return _judge(Holdout(), RIGHT * 64, WRONG * lost + RIGHT * (64 - lost), (100, tokens))

    cheap = judge(1, 80)  # -1.6 points
    assert cheap.passed and cheap.reason.startswith("cheaper: 80% of the tokens, effect -1.6%")
    assert cheap.tokens_ratio == 0.8
    assert not judge(2, 80).passed  # -3.1 points
    assert not judge(1, 81).passed
    assert not judge(12, 10).passed


def test_a_cheaper_one_with_signs_of_harm_is_kept_out_whatever_the_margin() -> None:
    verdict = _judge(Holdout(noninferiority=0.5), RIGHT * 64, WRONG * 6 + RIGHT * 58, (100, 10))
    assert not verdict.passed and verdict.reason.startswith("worse")


def test_a_champion_that_failed_is_left_out_and_counted() -> None:
    verdict = _judge(Holdout(), FAILED * 2 + WRONG * 14, WRONG + FAILED * 3 + RIGHT * 12)
    assert (verdict.n, verdict.effect, verdict.passed) == (14, 12 / 14, True)
    assert "(2 pairs excluded: infrastructure)" in verdict.reason
    few = _judge(Holdout(), FAILED * 9 + WRONG * 7, RIGHT * 16)
    assert not few.passed and "only 7 of 16 pairs are valid" in few.reason
    none = _judge(Holdout(), FAILED * 4, RIGHT * 4)
    assert not none.passed and none.n == 0 and none.ci95 == (-1.0, 1.0)
    assert all(math.isfinite(x) for x in (none.p, none.effect, none.tokens_ratio, *none.ci95))
    assert decode(Verdict, encode(none)) == none


def test_a_challenger_that_fails_where_the_champion_does_not_is_wrong_there() -> None:
    """Right on 21 where the champion is right on 12 of them, and dead on 19 that it solves."""
    worse = _judge(Holdout(), RIGHT * 12 + WRONG * 9 + RIGHT * 19, RIGHT * 21 + FAILED * 19)
    assert not worse.passed and worse.n == 40 and worse.effect == (9 - 19) / 40


def test_tokens_of_excluded_pairs_do_not_count_and_none_is_no_saving() -> None:
    assert _judge(Holdout(), "1x", "11", (100, 50)).tokens_ratio == 0.5
    free = _judge(Holdout(), "11", "11", (0, 0))
    assert free.tokens_ratio == 1.0 and not free.passed


def test_it_judges_the_first_n_tasks_and_refuses_what_it_cannot_judge() -> None:
    with pytest.raises(UsageError, match="no held-out tasks"):
        _judge(Holdout(), "", "")
    for wrong in (Holdout(alpha=0), Holdout(alpha=1), Holdout(min_effect=-0.1),
                  Holdout(tokens_saving=float("nan"))):  # fmt: skip
        with pytest.raises(UsageError, match="out of range"):
            _judge(wrong, "1", "1")

    async def evaluate(bundle: str, tasks: Sequence[Task]) -> list[Episode]:
        return []

    twice = [Task(id="a", prompt="1"), Task(id="a", prompt="2")]
    with pytest.raises(UsageError, match="twice"):
        asyncio.run(
            Holdout().judge("x", champion="a", challenger="b", tasks=twice, evaluate=evaluate)
        )


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["00", "01", "10", "11", "x1", "0x"]), min_size=1, max_size=40))
def test_the_numbers_agree_with_each_other(pairs: list[str]) -> None:
    verdict = _judge(Holdout(), "".join(p[0] for p in pairs), "".join(p[1] for p in pairs))
    assert verdict.n == sum(pair[0] != "x" for pair in pairs) == len(verdict.outcomes)
    assert verdict.effect == pytest.approx(verdict.challenger_rate - verdict.champion_rate)
    assert verdict.ci95[0] - 1e-12 <= verdict.effect <= verdict.ci95[1] + 1e-12
    assert not (verdict.passed and verdict.effect <= 0)


def _passes(gate: Holdout, old: float, new: float, shared: float, tokens: tuple[int, int]) -> float:
    """How often a challenger with true rate `new` passes, in 1,000 seeded evaluations of 64 tasks;
    `shared` of the tasks have the same luck for both."""
    rng = np.random.default_rng(11)
    luck = rng.random((1000, 64))
    other = np.where(rng.random((1000, 64)) < shared, luck, rng.random((1000, 64)))
    before, after = luck < old, other < new
    wins, losses = (after & ~before).sum(1), (before & ~after).sum(1)
    verdicts: dict[tuple[int, int], bool] = {}
    passed = 0
    for won, lost in zip(map(int, wins), map(int, losses), strict=True):
        key = (won, lost)
        if key not in verdicts:
            ties = 64 - won - lost
            champion = WRONG * won + RIGHT * (lost + ties)
            challenger = RIGHT * won + WRONG * lost + RIGHT * ties
            verdicts[key] = _judge(gate, champion, challenger, tokens).passed
        passed += verdicts[key]
    return passed / 1000


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_chance_is_promoted_no_more_often_than_alpha(rate: float, shared: float) -> None:
    assert _passes(Holdout(), rate, rate, shared, (100, 100)) <= 0.025 + 0.015


@pytest.mark.parametrize(("old", "new"), [(0.5, 0.4), (0.9, 0.7), (0.4, 0.2)])
def test_worse_challengers_are_refused(old: float, new: float) -> None:
    assert _passes(Holdout(), old, new, 0.5, (100, 100)) <= 0.005
    assert _passes(Holdout(), old, new, 0.5, (100, 50)) <= 0.20  # cheaper, and lucky on 64 tasks


@pytest.mark.parametrize(("old", "new"), [(0.3, 0.85), (0.4, 0.7)])
def test_real_gains_are_found(old: float, new: float) -> None:
    assert _passes(Holdout(), old, new, 0.5, (100, 100)) >= 0.9
