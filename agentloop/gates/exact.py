"""Exact statistics of paired comparisons: functions of numbers, no state, no dependence on order.

In: counts of wins and losses, or paired differences. Out: p-values and intervals. "Greater" always
means that the challenger (the second of a pair) is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

Alternative = Literal["two-sided", "greater", "less"]
EXACT_FLIPS = 16
"""Non-zero differences up to which all 2^n sign patterns are counted."""
_Z95 = 1.959963984540054


def sign_test(wins: int, losses: int, alternative: Alternative = "two-sided") -> float:
    """Exact p-value of McNemar's test: among `wins + losses` pairs in which only one of the two is
    right, each is a win with probability 1/2 under the null hypothesis (McNemar 1947; the exact
    conditional form). The two-sided value is twice the smaller tail, at most 1.
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"counts are not negative, got {wins} and {losses}")
    n = wins + losses

    def at_least(k: int) -> float:
        total, term = 0, math.comb(n, k)
        for i in range(k, n + 1):
            total += term
            term = term * (n - i) // (i + 1)
        return float(Fraction(total, 2**n))

    if alternative == "greater":
        return at_least(wins)
    if alternative == "less":
        return at_least(losses)
    return min(1.0, 2 * at_least(max(wins, losses)))


def sign_flip_test(
    differences: Sequence[float],
    alternative: Alternative = "two-sided",
    *,
    seed: int = 0,
    rounds: int = 9_999,
) -> float:
    """p-value of the paired permutation test on the mean of `differences` (Fisher 1935): under the
    null hypothesis each difference is as likely with the other sign.

    Exact up to `EXACT_FLIPS` non-zero differences; above, `rounds` seeded random patterns and the
    estimate (hits + 1) / (rounds + 1), which never understates (Phipson and Smyth 2010).
    """
    values = np.asarray(differences, dtype=float)
    if not np.isfinite(values).all():
        raise ValueError("differences must be finite")
    values = values[values != 0]
    n = len(values)
    if n == 0:
        return 1.0
    exact = n <= EXACT_FLIPS
    if exact:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        sums = (1 - 2 * bits) @ values
    else:
        rng = np.random.default_rng(seed)
        sums = np.concatenate(
            [(1 - 2 * rng.integers(0, 2, (size, n))) @ values for size in _chunks(rounds, n)]
        )
    observed = values.sum()
    slack = 1e-9 * np.abs(values).sum()  # equal sums differ by rounding
    match alternative:
        case "greater":
            hits = sums >= observed - slack
        case "less":
            hits = sums <= observed + slack
        case _:
            hits = np.abs(sums) >= abs(observed) - slack
    if exact:
        return float(hits.mean())
    return float((hits.sum() + 1) / (rounds + 1))


def difference_ci95(both: int, wins: int, losses: int, neither: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired proportions, (wins - losses) / n.

    Newcombe, "Improved confidence intervals for the difference between binomial proportions based
    on paired data", Statistics in Medicine 17 (1998), method 10: Wilson intervals of the two rates
    joined by their correlation, continuity-corrected. Stays within [-1, 1]; without pairs (-1, 1).
    """
    n = both + wins + losses + neither
    if min(both, wins, losses, neither) < 0:
        raise ValueError("counts are not negative")
    if n == 0:
        return (-1.0, 1.0)
    new, old = (both + wins) / n, (both + losses) / n
    effect = new - old
    (new_low, new_high), (old_low, old_high) = wilson95(both + wins, n), wilson95(both + losses, n)
    phi = _correlation(both, wins, losses, neither)

    def reach(mine: float, other: float) -> float:
        return math.sqrt(max(0.0, mine**2 - 2 * phi * mine * other + other**2))

    low = effect - reach(new - new_low, old_high - old)
    high = effect + reach(new_high - new, old - old_low)
    return (max(-1.0, low), min(1.0, high))


def wilson95(k: int, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927)."""
    p, z2 = k / n, _Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return (max(0.0, centre - half), min(1.0, centre + half))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for testing all of them, in the given order (Holm 1979): rejecting those
    below alpha keeps the chance of any false rejection below alpha."""
    m = len(p_values)
    adjusted = [0.0] * m
    running = 0.0
    for rank, at in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (m - rank) * p_values[at]))
        adjusted[at] = running
    return adjusted


def _correlation(both: int, wins: int, losses: int, neither: int) -> float:
    """Newcombe's phi: of the 2x2 table, with n/2 taken off a positive numerator (not below 0)."""
    n = both + wins + losses + neither
    margins = (both + wins) * (losses + neither) * (both + losses) * (wins + neither)
    if margins == 0:
        return 0.0
    numerator = float(both * neither - wins * losses)
    if numerator > 0:
        numerator = max(0.0, numerator - n / 2)
    return numerator / math.sqrt(margins)


def _chunks(rounds: int, n: int) -> list[int]:
    """Sizes that sum to `rounds`, each a matrix of at most about two million signs."""
    size = max(1, 2_000_000 // n)
    return [min(size, rounds - start) for start in range(0, rounds, size)]
