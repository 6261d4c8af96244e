"""A linear scorer of texts, fitted in closed form: the smallest value or reward model there is.

In: feature vectors (rows x dimensions, for instance embeddings of texts) and what each row is worth
or which rows of a group are good. Out: a `Linear`, plain numbers that survive JSON. Deterministic,
milliseconds; a baseline that says what a larger scorer has to beat.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agentloop.errors import UsageError
from agentloop.records.base import record

Vectors = NDArray[np.float64]
_NEWTON = 25
"""Steps; the pair loss is convex and is at its minimum long before."""


@record
class Linear:
    """`features @ weights + bias`."""

    weights: tuple[float, ...]
    bias: float = 0.0

    def scores(self, features: Vectors) -> list[float]:
        """One number per row. Raises `UsageError` for rows of another length than the weights."""
        if features.ndim != 2 or features.shape[1] != len(self.weights):
            raise UsageError(
                f"a scorer of {len(self.weights)} features was given rows of {features.shape[-1]}"
            )
        return [float(one) for one in features @ np.asarray(self.weights) + self.bias]


def ridge(features: Vectors, targets: Sequence[float], *, penalty: float = 1.0) -> Linear:
    """Least squares with `penalty * |weights|^2`; the bias is free. Raises `UsageError` without
    rows or with a penalty that is not positive."""
    _check(features, len(targets), penalty)
    wanted = np.asarray(targets, dtype=np.float64)
    middle, mean = features.mean(axis=0), float(wanted.mean())
    centred = features - middle
    gram = centred.T @ centred + penalty * np.eye(features.shape[1])
    weights = np.linalg.solve(gram, centred.T @ (wanted - mean))
    return _linear(weights, mean - float(middle @ weights))


def pairwise(
    features: Vectors, good: Sequence[bool], groups: Sequence[str], *, penalty: float = 1e-3
) -> Linear:
    """Minimise, over groups, the mean of `-log sigmoid(good - bad)` over all good/bad pairs of one
    group (the listwise loss of Qwen2.5-Math, arXiv 2409.12122, section 3.2), plus `penalty / 2 *
    |weights|^2`; by Newton's method. Groups without both kinds say nothing and are left out.

    Raises `UsageError` when no group has both kinds, and as `ridge`.
    """
    _check(features, len(good), penalty)
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    blocks, shares = [], []
    for rows in members.values():
        better = features[[row for row in rows if good[row]]]
        worse = features[[row for row in rows if not good[row]]]
        pairs = (better[:, None, :] - worse[None, :, :]).reshape(-1, features.shape[1])
        if len(pairs):
            blocks.append(pairs)
            shares.append(np.full(len(pairs), 1.0 / len(pairs)))
    if not blocks:
        raise UsageError("no group has both good and bad rows; sample more of each task")
    differences, weight = np.concatenate(blocks), np.concatenate(shares) / len(blocks)
    found = np.zeros(features.shape[1])
    for _ in range(_NEWTON):
        lost = 1.0 / (1.0 + np.exp(np.clip(differences @ found, -50.0, 50.0)))
        slope = penalty * found - differences.T @ (weight * lost)
        bend = (differences * (weight * lost * (1.0 - lost))[:, None]).T @ differences
        step = np.linalg.solve(bend + penalty * np.eye(len(found)), slope)
        found = found - step
        if float(np.abs(step).max()) < 1e-10:
            break
    return _linear(found, 0.0)


def _check(features: Vectors, rows: int, penalty: float) -> None:
    if features.ndim != 2 or not rows or len(features) != rows:
        raise UsageError(f"{rows} targets do not fit features of the shape {features.shape}")
    if not penalty > 0:
        raise UsageError(f"the penalty {penalty} is not usable; give a positive number")


def _linear(weights: Vectors, bias: float) -> Linear:
    return Linear(weights=tuple(float(one) for one in weights), bias=bias)
