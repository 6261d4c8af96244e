"""Evidence that may be looked at after every observation: the wealth of a bettor.

In: paired differences, one after the other, each in [-1, 1]. Out: how much a stake of 1 has grown
after each of them, betting that their mean is above a null value. If it is not, no strategy grows
the stake by a factor of 1 / alpha at *any* time with more than a chance of alpha (Ville 1939), so
one may stop as soon as it did. The stake is spread over fixed fractions, which needs no tuning
(Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86
(2024), section 4).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FRACTIONS = np.arange(1, 20) / 20
"""Of the most that can be bet without ever owing; small ones find small effects, large ones large
effects soon."""
_MOST = 700.0
"""exp of it is finite, which is enough for everyone."""


def wealth(differences: Sequence[float], *, null: float = 0.0) -> list[float]:
    """The stake's worth after each difference, under the null hypothesis that, whatever came
    before, the expected difference is at most `null`. To bet that the mean is *below* a value,
    negate both. Raises `ValueError` for a difference outside [-1, 1] or a null outside (-1, 1)."""
    values = np.asarray(differences, dtype=float)
    if not (np.abs(values) <= 1).all():  # NaN is refused as well
        raise ValueError("differences must lie between -1 and 1")
    if not -1 < null < 1:
        raise ValueError(f"the null lies between -1 and 1, got {null}")
    # The worst that can happen is a difference of -1, which costs bet * (1 + null).
    bets = FRACTIONS / (1 + null)
    grown = np.cumsum(np.log1p(np.outer(bets, values - null)), axis=1)
    return [float(one) for one in np.exp(np.minimum(grown, _MOST)).mean(axis=0)]


def evidence(differences: Sequence[float], *, null: float = 0.0) -> float:
    """The most that the stake was ever worth, at least 1. Its inverse is a p-value that may be
    looked at any time."""
    return max([1.0, *wealth(differences, null=null)])


def interval(differences: Sequence[float], *, alpha: float = 0.05) -> tuple[float, float]:
    """Where the mean lies with a confidence of 1 - `alpha`, however it was decided when to stop:
    all null values against which neither side's stake is worth 2 / `alpha` (the same paper, section
    4.2). It always holds the observed mean; without differences it is (-1, 1)."""
    return (
        _least(differences, alpha / 2),
        -_least([-one for one in differences], alpha / 2),
    )


def _least(differences: Sequence[float], alpha: float) -> float:
    """The largest null that is refuted, by halving: the stake's worth falls as the null rises."""
    if not differences:
        return -1.0
    low, high = -1.0, float(np.mean(differences))
    while high - low > 5e-4:
        middle = (low + high) / 2
        if wealth(differences, null=middle)[-1] >= 1 / alpha:
            low = middle
        else:
            high = middle
    return low
