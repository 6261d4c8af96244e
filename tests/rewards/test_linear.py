"""The linear scorer: least squares, and the ranking of good above bad within groups."""

from __future__ import annotations

import numpy as np
import pytest

from agentloop.errors import UsageError
from agentloop.rewards.linear import Linear, pairwise, ridge
from agentloop.trajectories.codec import decode, encode

CHANCE = np.random.default_rng(0)
ROWS = CHANCE.normal(size=(200, 5))
WEIGHTS = np.array([1.0, -2.0, 0.5, 0.0, 3.0])


def test_ridge_finds_the_plane_and_shrinks_with_the_penalty() -> None:
    targets = (ROWS @ WEIGHTS + 4.0).tolist()
    found = ridge(ROWS, targets, penalty=1e-6)
    assert np.allclose(found.weights, WEIGHTS, atol=1e-5) and found.bias == pytest.approx(4.0)
    assert np.allclose(found.scores(ROWS), targets, atol=1e-4)
    small = ridge(ROWS, targets, penalty=1e4)
    assert np.linalg.norm(small.weights) < 0.1 * np.linalg.norm(WEIGHTS)
    assert np.mean(small.scores(ROWS)) == pytest.approx(np.mean(targets))


def test_a_scorer_survives_json() -> None:
    found = ridge(ROWS, ROWS[:, 0].tolist())
    assert decode(Linear, encode(found)).scores(ROWS) == found.scores(ROWS)


def grouped(size: int = 5) -> tuple[list[bool], list[str]]:
    good = (ROWS @ WEIGHTS + CHANCE.normal(size=len(ROWS)) > 0).tolist()
    return good, [f"g{at // size}" for at in range(len(ROWS))]


def test_pairwise_is_at_the_minimum_of_the_listwise_loss() -> None:
    """The gradient of the trainer's loss, taken by torch, is that of the penalty there."""
    torch = pytest.importorskip("torch")
    from agentloop.training.losses import listwise

    good, groups = grouped()
    found = pairwise(ROWS, good, groups, penalty=0.01)
    weights = torch.tensor(found.weights, dtype=torch.float64, requires_grad=True)
    features = torch.tensor(ROWS).view(-1, 5, 5)
    labels = torch.tensor(good).view(-1, 5)
    mixed = labels.any(1) & ~labels.all(1)
    listwise(features[mixed] @ weights, labels[mixed]).value.backward()
    assert torch.allclose(weights.grad, -0.01 * weights, atol=1e-7)


def test_groups_of_one_kind_say_nothing() -> None:
    good, groups = grouped()
    base = pairwise(ROWS, good, groups)
    more = np.concatenate([ROWS, CHANCE.normal(size=(10, 5))])
    extended = pairwise(more, [*good, *[True] * 5, *[False] * 5], [*groups, *["x"] * 5, *["y"] * 5])
    assert np.allclose(base.weights, extended.weights)
    with pytest.raises(UsageError, match="both good and bad"):
        pairwise(ROWS[:5], [True] * 5, ["g"] * 5)


def test_only_differences_within_a_group_count() -> None:
    good, groups = grouped()
    shift = np.array([hash_free(group) for group in groups])[:, None] * np.ones((1, 5))
    moved = pairwise(ROWS + shift, good, groups)
    assert np.allclose(moved.weights, pairwise(ROWS, good, groups).weights, atol=1e-6)


def hash_free(group: str) -> float:
    return float(int(group[1:]) % 7)


@pytest.mark.parametrize("penalty", [0.0, -1.0])
def test_what_does_not_fit_is_an_error(penalty: float) -> None:
    with pytest.raises(UsageError, match="penalty"):
        ridge(ROWS, ROWS[:, 0].tolist(), penalty=penalty)
    with pytest.raises(UsageError, match="do not fit"):
        ridge(ROWS, [1.0])
    with pytest.raises(UsageError, match="5 features was given rows of 4"):
        ridge(ROWS, ROWS[:, 0].tolist()).scores(ROWS[:, :4])
