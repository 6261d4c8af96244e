"""A reference stays, follows geometrically, or is renewed; a fixed one stalls where theory says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from agentloop.errors import UsageError
from agentloop.training.anchors import Anchor
from agentloop.training.losses import full_kl
from agentloop.training.toy import Learning, TabularPolicy


def module() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def move(one: nn.Linear, by: float) -> None:
    with torch.no_grad():
        for weight in one.parameters():
            weight.add_(by)


def test_a_fixed_anchor_stays_and_an_average_converges_geometrically() -> None:
    policy = module()
    fixed, average = Anchor(policy), Anchor(policy, keep=0.9)
    move(policy, 1.0)
    start = average.distance()
    for step in range(1, 30):
        fixed.follow()
        average.follow()
        assert average.distance() == pytest.approx(start * 0.9**step, rel=1e-3)
    assert fixed.distance() == pytest.approx(start)
    fixed.renew()
    assert fixed.distance() == 0.0
    with pytest.raises(UsageError):
        Anchor(policy, keep=1.5)


def test_in_place_the_module_is_the_reference_and_then_itself_again() -> None:
    policy, given = module(), torch.ones(1, 3)
    before = policy(given)
    anchor = Anchor(policy)
    move(policy, 1.0)
    moved = policy(given)
    with anchor.in_place():
        assert torch.equal(policy(given), before)
    assert torch.equal(policy(given), moved)
    with pytest.raises(RuntimeError), anchor.in_place():
        raise RuntimeError
    assert torch.equal(policy(given), moved)


def test_only_what_is_learned_is_kept() -> None:
    policy = module()
    policy.bias.requires_grad_(False)
    assert set(Anchor(policy).kept) == {"weight"}


def bandit(keep: float, weight: float, steps: int) -> float:
    """Probability of the best of ten arms, whose first one is 0.0092, under a leash."""
    start = torch.zeros(1, 10)
    start[0, 0] = math.log(0.0092 / (1 - 0.0092) * 9)
    policy = TabularPolicy(start, learning=Learning("sgd", 2.0))
    anchor = Anchor(policy, keep=keep)
    one, rewards = torch.ones(1, 1, dtype=torch.bool), torch.eye(10)[0]
    arm = torch.zeros(1, 1, dtype=torch.long)
    for _ in range(steps):
        with anchor.in_place():
            ref = policy.at(arm).detach()
        logits = policy.at(arm)
        gain = (logits.softmax(-1) * rewards).sum()
        policy.step(weight * full_kl(logits, ref, one).value - gain)
        anchor.follow()
    return policy.at(arm).softmax(-1)[0, 0, 0].item()


def test_a_fixed_leash_stalls_at_the_closed_form_and_a_moving_one_does_not() -> None:
    p0, weight = 0.0092, 0.3
    closed = p0 * math.exp(1 / weight) / (p0 * math.exp(1 / weight) + 1 - p0)
    assert bandit(1.0, weight, 600) == pytest.approx(closed, abs=0.01)
    assert bandit(0.95, weight, 600) >= 0.95
