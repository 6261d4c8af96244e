"""The statistics against brute force, textbook values and simulated coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentloop.gates.exact import difference_ci95, holm, sign_flip_test, sign_test, wilson95

few = st.integers(0, 8)


@given(few, few)
def test_sign_test_is_the_share_of_coin_sequences(wins: int, losses: int) -> None:
    n = wins + losses
    heads = [sum(flips) for flips in itertools.product((0, 1), repeat=n)]
    greater = sum(h >= wins for h in heads) / len(heads)
    less = sum(h <= wins for h in heads) / len(heads)
    assert sign_test(wins, losses, "greater") == pytest.approx(greater)
    assert sign_test(wins, losses, "less") == pytest.approx(less)
    assert sign_test(wins, losses) == pytest.approx(min(1, 2 * min(greater, less)))
    assert sign_test(wins, losses) == sign_test(losses, wins)


def test_sign_test_known_values_and_large_counts() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(10, 0) == 2 / 1024
    assert sign_test(5, 0, "greater") == 1 / 32
    assert 0 < sign_test(1300, 900) < 1e-15
    assert sign_test(5000, 5000) == 1.0
    with pytest.raises(ValueError, match="not negative"):
        sign_test(-1, 2)


values = st.lists(st.integers(-4, 4).map(lambda k: k / 10), max_size=8)


@settings(max_examples=60)
@given(values, st.sampled_from(["two-sided", "greater", "less"]))
def test_sign_flip_counts_all_patterns(differences: list[float], alternative: str) -> None:
    signs = list(itertools.product((1, -1), repeat=len(differences)))
    tenths = [round(10 * d) for d in differences]
    sums = [sum(s * d for s, d in zip(sign, tenths, strict=True)) for sign in signs]
    observed = sum(tenths)
    hits = {
        "greater": sum(s >= observed for s in sums),
        "less": sum(s <= observed for s in sums),
        "two-sided": sum(abs(s) >= abs(observed) for s in sums),
    }
    p = sign_flip_test(differences, alternative)  # type: ignore[arg-type]
    assert p == pytest.approx(hits[alternative] / len(sums))


@given(few, few, st.integers(0, 5))
def test_on_right_and_wrong_it_is_the_sign_test(wins: int, losses: int, ties: int) -> None:
    differences = [1.0] * wins + [-1.0] * losses + [0.0] * ties
    for alternative in ("greater", "less"):
        p = sign_flip_test(differences, alternative)  # type: ignore[arg-type]
        assert p == pytest.approx(sign_test(wins, losses, alternative))  # type: ignore[arg-type]


def test_many_differences_are_sampled_repeatably_and_never_give_zero() -> None:
    rng = np.random.default_rng(0)
    noise = list(rng.normal(0, 1, 60))
    assert sign_flip_test(noise, seed=1) == sign_flip_test(noise, seed=1)
    assert abs(sign_flip_test(noise, seed=1) - sign_flip_test(noise, seed=2)) < 0.03
    assert sign_flip_test([1.0] * 100, "greater") == 1 / 10_000
    assert sign_flip_test([1.0] * 100, "less") == 1.0
    assert sign_flip_test([-0.5] * 30, "greater", rounds=99) == 1.0
    with pytest.raises(ValueError, match="finite"):
        sign_flip_test([math.nan])


def test_sampling_agrees_with_the_exact_tail() -> None:
    exact = sign_test(14, 6, "greater")
    sampled = sign_flip_test([1.0] * 14 + [-1.0] * 6, "greater", rounds=40_000)
    assert abs(sampled - exact) < 4 * math.sqrt(exact / 40_000)


cells = st.integers(0, 40)


@given(cells, cells, cells, cells)
def test_the_interval_holds_the_estimate_and_mirrors(a: int, b: int, c: int, d: int) -> None:
    low, high = difference_ci95(a, b, c, d)
    n = a + b + c + d
    assert -1 <= low <= high <= 1
    if n:
        assert low - 1e-12 <= (b - c) / n <= high + 1e-12
    mirrored = difference_ci95(a, c, b, d)
    assert (low, high) == (pytest.approx(-mirrored[1]), pytest.approx(-mirrored[0]))


def test_the_interval_covers_what_it_should() -> None:
    """Coverage under true paired rates, by simulation: a 95 % interval misses about 5 %."""
    rng = np.random.default_rng(1)
    for rates in ([0.3, 0.3, 0.1, 0.3], [0.1, 0.05, 0.05, 0.8], [0.6, 0.25, 0.05, 0.1]):
        truth = rates[1] - rates[2]
        tables = rng.multinomial(64, rates, 1500)
        hit = [
            low <= truth <= high for low, high in (difference_ci95(*map(int, t)) for t in tables)
        ]
        assert 0.93 <= np.mean(hit) <= 0.985
    assert difference_ci95(0, 0, 0, 0) == (-1.0, 1.0)
    with pytest.raises(ValueError, match="not negative"):
        difference_ci95(1, -1, 0, 0)


def test_interval_agrees_with_another_implementation() -> None:
    """Values that the R package contingencytables tests for (59, 6, 16, 80 are of Cavo and others
    2012); the second one is zero correlation only by the correction."""
    assert difference_ci95(59, 6, 16, 80) == pytest.approx((-0.1186, -0.0046), abs=5e-5)
    assert difference_ci95(1, 0, 0, 1) == pytest.approx((-0.5734, 0.5734), abs=5e-5)


def test_wilson_textbook_values() -> None:
    assert wilson95(81, 263) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    assert wilson95(15, 148) == (pytest.approx(0.0624, abs=5e-5), pytest.approx(0.1605, abs=5e-5))
    assert wilson95(0, 20) == (0.0, pytest.approx(0.1611, abs=5e-5))


def _closed_holm(ps: list[float]) -> list[float]:
    """Adjusted by closed testing: the largest Bonferroni p of the subsets that hold the index."""
    m = len(ps)
    subsets = [s for k in range(1, m + 1) for s in itertools.combinations(range(m), k)]
    return [
        max(min(1, len(s) * min(ps[i] for i in s)) for s in subsets if at in s) for at in range(m)
    ]


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_the_closed_bonferroni_procedure(ps: list[float]) -> None:
    assert holm(ps) == pytest.approx(_closed_holm(ps))


def test_holm_known_values() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
