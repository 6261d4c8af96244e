"""A step as tensors: weights of the whole, and what is taken out of advantages or silenced."""

from __future__ import annotations

import math

import pytest
import torch

from agentloop.training.losses import centred_kl
from agentloop.training.replay_rows import Sample
from agentloop.training.replay_settings import ReplaySettings
from agentloop.training.replay_tensors import (
    Means,
    Tokens,
    fined,
    moved,
    part_loss,
    policy_loss,
    silenced,
    tensors,
)

SAMPLES = [
    Sample((1, 2, 3, 4), (False, False, True, True), (0, 0, -1.0, -2.0), (0, 0, 1.0, 1.0),
           (False, False, True, True), "a", weight=2.0, correct=True, share=0.25),
    Sample((1, 2, 5), (False, False, True), (0, 0, -0.5), (0, 0, -1.0), (False, False, True), "a",
           share=0.25),
]  # fmt: skip


def made(**settings: object) -> Tokens:
    given = ReplaySettings.model_validate(settings)
    return tensors(SAMPLES, given, torch.float64, torch.device("cpu"))


def test_weights_are_of_the_whole_step_and_the_rows_own() -> None:
    weights = made(reduction="token").weights
    assert weights.flatten().tolist() == pytest.approx([0, 0, 2 / 3, 2 / 3, 0, 0, 1 / 3, 0])
    assert made(reduction="sequence").weights[:, 2].tolist() == pytest.approx([0.5, 0.5])
    part = made().part([1], 1, 3)
    assert part.ids.tolist() == [[2, 5]]
    assert part.old.tolist() == [[0, -0.5]]


def test_a_rows_divergence_less_the_mean_is_taken_out_of_its_advantages() -> None:
    tokens, logp = made(), torch.full((2, 4), -0.25, dtype=torch.float64)
    tokens = tokens.replaced(ref=logp - torch.tensor([[1.0], [0.5]]))
    found = fined(logp, tokens, 0.1)
    assert centred_kl(logp, tokens.ref, tokens.mask).tolist() == [0.75, -0.75]
    expected = [0, 0, 0.925, 0.925, 0, 0, -0.925, 0]
    assert found.advantages.flatten().tolist() == pytest.approx(expected)


def test_the_loss_is_the_one_that_is_named() -> None:
    tokens = made()
    logp = tokens.old.clone().requires_grad_()
    values = {}
    for loss in ("policy_gradient", "negative_aware"):
        settings = ReplaySettings(loss=loss, reduction="sum")  # type: ignore[arg-type]
        found = policy_loss(logp, tokens, tokens.mask.double(), settings)
        values[loss] = torch.autograd.grad(found.value, logp)[0]
    assert values["policy_gradient"][0, 2] == -1.0
    assert values["negative_aware"][0, 2] == pytest.approx(-0.75)
    assert values["negative_aware"][1, 2] == pytest.approx(0.25)


def test_what_is_silenced_is_not_what_is_clipped() -> None:
    tokens = made()
    every = {"covariance": {"share": 1.0, "low": -99, "high": 99}}
    logp = tokens.old + torch.tensor([[0, 0, 5.0, 0.0], [0, 0, 0, 0]])  # clipped: +, far up
    found = silenced(logp, tokens, ReplaySettings.model_validate(every), 0)
    assert found.kept.tolist() == [[False, False, True, False], [False] * 4]
    assert silenced(logp, tokens, ReplaySettings(), 0) is tokens


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_a_policy_held_in_its_first_attempt_is_watched_in_all(estimator: str) -> None:
    tokens = made(anchor={"first": 1.0, "estimator": estimator}, reduction="token")
    given = ReplaySettings.model_validate({"anchor": {"first": 1.0, "estimator": estimator}})
    early = torch.zeros_like(tokens.mask)
    early[1, 2] = True  # of three sampled tokens, this one only is of a first attempt
    logp = tokens.old.clone()
    logp[0, 2] += 2.0
    tokens, stats = tokens.replaced(ref=tokens.old, first=early), Means()
    zeros, whole = torch.zeros_like(logp), tokens.mask.sum()
    part_loss(logp, zeros, tokens, settings=given, whole=whole, stats=stats)
    assert stats.means()["kl"] == pytest.approx((math.exp(-2.0) + 2.0 - 1) / 3)


def test_means_over_parts_count_their_tokens() -> None:
    means = Means()
    means.add({"x": torch.tensor(1.0)}, 3)
    means.add({"x": torch.tensor(5.0)}, 1)
    means.add({"x": torch.tensor(99.0)}, 0)
    assert means.means() == {"x": 2.0}


def test_a_token_that_became_unlikely_counts_in_nats() -> None:
    """Five nats down is 5 + e^-5 - 1, not e^5 - 6: learning from a wrong row is no divergence."""
    tokens = made(reduction="token")
    logp = tokens.old.clone()
    place = tokens.mask.nonzero()[0]
    logp[place[0], place[1]] -= 5.0
    expected = (5 + torch.tensor(-5.0).exp() - 1) / tokens.mask.sum()
    assert moved(logp, tokens).stats["kl"] == pytest.approx(float(expected), rel=1e-4)
    assert float(moved(tokens.old, tokens).stats["kl"]) == 0
