"""The formulas, by their gradients: coefficients on each token's log-prob, and where they are 0."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agentloop.errors import UsageError
from agentloop.training.losses import (
    Band,
    Cap,
    Clip,
    Loss,
    Negatives,
    centred_kl,
    covariance_clip,
    entropy,
    fresh,
    full_kl,
    implicit_rewards,
    listwise,
    masked_kl,
    negative_aware,
    outside,
    pair_logistic,
    policy_gradient,
    reduce,
    success_pairs,
    weigh,
)
from agentloop.training.toy import Learning, TabularPolicy

MASK = torch.tensor([[True, True, False, True], [True, False, False, False]])
SUM = MASK.double()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coefficients(loss: Loss, logp: Tensor) -> Tensor:
    return torch.autograd.grad(loss.value, logp)[0]


def pair(seed: int = 0, gap: float = 0.3) -> tuple[Tensor, Tensor]:
    """A policy's log-probs and the ones of sampling."""
    old = -draw(2, 4, seed=seed).abs() - 0.1
    return (old + gap * draw(2, 4, seed=seed + 1)).requires_grad_(), old


def test_reductions() -> None:
    values = torch.arange(8.0).reshape(2, 4)
    assert reduce(values, MASK, "token") == pytest.approx((0 + 1 + 3 + 4) / 4)
    assert reduce(values, MASK, "sequence") == pytest.approx(((0 + 1 + 3) / 3 + 4) / 2)
    assert reduce(values, MASK, "constant", 10) == pytest.approx(8 / 20)
    assert reduce(values, MASK, "sum", 1000) == pytest.approx(8 / 1000)
    with pytest.raises(UsageError):
        weigh(MASK, "mean")  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        weigh(MASK, "sum", 0.0)


@pytest.mark.parametrize("how", ["token", "sequence", "constant", "sum"])
def test_parts_of_a_batch_add_up_to_the_whole(how: str) -> None:
    logp, old = pair()
    weights, gains = weigh(MASK, how, 7.0), draw(2)  # type: ignore[arg-type]
    whole = coefficients(policy_gradient(logp, old, gains, weights), logp)
    each = [
        coefficients(policy_gradient(logp, old, gains, weights * row), logp)
        for row in (torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]]))
    ]
    assert torch.equal(whole, each[0] + each[1])


def test_on_policy_the_coefficient_is_minus_the_advantage() -> None:
    _, old = pair()
    logp, gains = old.clone().requires_grad_(), draw(2, 4, seed=3)
    for level in ("token", "sequence"):
        found = policy_gradient(logp, old, gains, SUM, level=level)  # type: ignore[arg-type]
        expected = -gains * SUM
        if level == "sequence":  # one ratio for a row: its gradient is the row's mean
            count = SUM.sum(1, keepdim=True)
            expected = -(gains * SUM).sum(1, keepdim=True) / count * SUM
        assert torch.allclose(coefficients(found, logp), expected, atol=1e-12)
        assert found.stats["ratio"] == pytest.approx(1.0)
        assert found.stats["clip_share"] == 0


@settings(max_examples=60, deadline=None)
@given(st.floats(-2, 2), st.floats(-2, 2).filter(lambda a: abs(a) > 1e-3))
def test_clipping_stops_what_pays(gap: float, advantage: float) -> None:
    old, mask = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    logp = torch.full_like(old, gap).requires_grad_()
    gains = torch.tensor([advantage], dtype=torch.float64)
    ratio = math.exp(gap)
    stopped = (ratio > 1.28 and advantage > 0) or (ratio < 0.8 and advantage < 0)
    clipped = policy_gradient(logp, old, gains, mask, Clip(0.2, 0.28))
    found = coefficients(clipped, logp)
    assert float(found) == pytest.approx(0.0 if stopped else -ratio * advantage)
    assert clipped.stats["clip_share"] == stopped
    plain = coefficients(policy_gradient(logp, old, gains, mask, None), logp)
    assert float(plain) == pytest.approx(-ratio * advantage)
    capped = coefficients(policy_gradient(logp, old, gains, mask, Cap(2.0)), logp)
    assert float(capped) == pytest.approx(-min(ratio, 2.0) * advantage)


def test_one_ratio_for_a_row_is_its_geometric_mean() -> None:
    logp, old = pair(gap=0.05)
    gains = draw(2)
    found = coefficients(policy_gradient(logp, old, gains, SUM, None, "sequence"), logp)
    count = SUM.sum(1, keepdim=True)
    ratio = (((logp - old) * SUM).sum(1, keepdim=True) / count).exp().detach()
    assert torch.allclose(found, -ratio * gains[:, None] * SUM, atol=1e-12)


def losses_of(logp: Tensor, old: Tensor) -> list[Loss]:
    right, share = torch.tensor([True, False]), torch.tensor([0.25, 0.25])
    gains = draw(2)
    return [
        policy_gradient(logp, old, gains, MASK),
        policy_gradient(logp, old, gains, MASK, Cap(1.5), "sequence"),
        policy_gradient(logp, old, gains, MASK, None, "sequence"),
        negative_aware(logp, old, MASK, right, share),
        masked_kl(logp, old, MASK, "k2"),
        masked_kl(logp, old, MASK, "k3"),
    ]


def test_what_was_not_sampled_is_never_read() -> None:
    """Padding may hold anything, and gets no gradient."""
    logp, old = pair()
    clean = [coefficients(each, logp) for each in losses_of(logp, old)]
    for garbage in (math.nan, math.inf, -1e9):
        dirty = torch.where(MASK, logp.detach(), garbage).requires_grad_()
        for expected, each in zip(clean, losses_of(dirty, old), strict=True):
            found = coefficients(each, dirty)
            assert torch.equal(found, expected)
            assert not found[~MASK].any()


@pytest.mark.parametrize("p", [1 / 8, 1 / 2, 7 / 8])
@pytest.mark.parametrize(
    ("normalise", "right", "wrong"),
    [
        (1, lambda p: -(1 - p), lambda p: p),
        (2, lambda p: -math.sqrt((1 - p) / p), lambda p: math.sqrt(p / (1 - p))),
        (0, lambda p: -1.0, lambda p: p / (1 - p)),
    ],
)
def test_negative_aware_on_policy_is_group_relative(
    p: float, normalise: int, right: object, wrong: object
) -> None:
    """At ratio 1 the weights 1 - p make it Dr. GRPO and sqrt((1 - p) / p) make it GRPO."""
    _, old = pair()
    logp, share = old.clone().requires_grad_(), torch.full((2,), p, dtype=torch.float64)
    rule = Negatives(normalise=normalise)  # type: ignore[arg-type]
    loss = negative_aware(logp, old, SUM, torch.tensor([True, False]), share, rule)
    found = coefficients(loss, logp)
    assert torch.allclose(found[0], right(p) * SUM[0], atol=1e-9)  # type: ignore[operator]
    assert torch.allclose(found[1], wrong(p) * SUM[1], atol=1e-9)  # type: ignore[operator]


@settings(max_examples=60, deadline=None)
@given(st.floats(0.02, 0.98), st.floats(-2, 2), st.floats(0.1, 2))
def test_negative_aware_coefficients_off_policy(p: float, gap: float, floor: float) -> None:
    old = torch.zeros(2, 1, dtype=torch.float64)
    logp, share = (old + gap).requires_grad_(), torch.full((2,), p, dtype=torch.float64)
    mask = torch.ones(2, 1, dtype=torch.float64)
    rule = Negatives(floor=floor, normalise=1)
    found = coefficients(
        negative_aware(logp, old, mask, torch.tensor([True, False]), share, rule), logp
    )
    ratio = math.exp(gap)
    held = max((1 - p * ratio) / (1 - p), floor)
    assert float(found[0, 0]) == pytest.approx(-(1 - p))
    assert float(found[1, 0]) == pytest.approx((1 - p) * p * ratio / (1 - p) / held)


def test_negative_aware_is_finite_where_the_negative_policy_is_not() -> None:
    logp = torch.full((1, 1), math.log(5.0)).requires_grad_()
    one, share = torch.ones(1, 1, dtype=torch.bool), torch.tensor([0.875])
    loss = negative_aware(logp, torch.zeros(1, 1), one, torch.tensor([False]), share)
    assert torch.isfinite(loss.value)
    assert torch.isfinite(coefficients(loss, logp)).all()
    assert loss.stats["clip_share"] == 1.0


def test_without_negatives_wrong_rows_have_no_gradient() -> None:
    logp, old = pair()
    share, right = torch.tensor([0.5, 0.5]), torch.tensor([True, False])
    found = coefficients(negative_aware(logp, old, MASK, right, share, Negatives(weight=0)), logp)
    assert not found[1].any()
    assert found[0][MASK[0]].all()
    for decided in (0.0, 1.0):
        with pytest.raises(UsageError, match="leave it out"):
            negative_aware(logp, old, MASK, right, torch.tensor([0.5, decided]))


def test_negative_aware_learns_what_a_policy_gradient_learns_on_policy() -> None:
    """One update per rollout, weights sqrt((1 - p) / p): the same parameters after 20 steps."""
    ends = []
    for kind in ("negative_aware", "policy_gradient"):
        policy = TabularPolicy(torch.zeros(6, 6).double(), learning=Learning("sgd", 0.5), seed=29)
        for _ in range(20):
            drawn = policy.sample(torch.arange(4).repeat_interleave(8)[:, None], 3)
            right = (drawn.tokens[:, 1:] == 2).any(1)
            share = right.view(4, 8).double().mean(1).repeat_interleave(8)
            use = (share > 0.02) & (share < 0.98)
            tokens, right, p = drawn.tokens[use], right[use], share[use]
            logp = policy.logp(tokens, 1)
            mask = weigh(torch.ones_like(logp).bool(), "sum", 50)
            old = drawn.logp[use]
            if kind == "negative_aware":
                loss = negative_aware(logp, old, mask, right, p, Negatives(normalise=2))
            else:
                loss = policy_gradient(logp, old, (right.double() - p) / (p * (1 - p)).sqrt(), mask)
            policy.step(loss.value)
        ends.append(policy.table.detach())
    assert float(ends[0].abs().max()) > 0.1
    assert float((ends[0] - ends[1]).abs().max()) <= 1e-5


def test_covariance_clip_silences_few_and_only_inside_the_band() -> None:
    logp, gains = draw(20, 50, seed=8) * 2, draw(20, 50, seed=9) * 2
    mask = torch.rand(20, 50, generator=torch.Generator().manual_seed(1)) < 0.7
    band, seen = Band(share=0.02, low=1.0, high=4.0), torch.zeros(20, 50, dtype=torch.bool)
    centre = mask.double() / mask.sum()
    covariance = (gains - (gains * centre).sum()) * (logp - (logp * centre).sum())
    for seed in range(5):
        keep = covariance_clip(logp, gains, mask, band, torch.Generator().manual_seed(seed))
        silent = mask & ~keep
        assert 0 < int(silent.sum()) <= 0.02 * int(mask.sum())
        assert bool(((covariance > 1.0) & (covariance < 4.0))[silent].all())
        assert not bool(keep[~mask].any())
        seen |= silent
    assert int(seen.sum()) > 0.02 * int(mask.sum())  # which ones is drawn
    assert torch.equal(covariance_clip(logp, gains, mask, Band(share=0.0)), mask)
    few = covariance_clip(logp, gains, mask, Band(share=1e-6, low=1.0, high=4.0))
    assert int((mask & ~few).sum()) == 1  # a share of less than a token is one
    assert torch.equal(covariance_clip(logp, gains, mask, Band(low=1e6, high=1e7)), mask)


def test_covariance_clip_leaves_alone_what_is_clipped_already() -> None:
    logp, gains = draw(10, 10, seed=8) * 2, draw(10, 10, seed=9) * 2
    clipped = outside((logp - draw(10, 10)).exp(), gains, Clip())
    mask = torch.ones(10, 10, dtype=torch.bool) & ~clipped
    keep = covariance_clip(logp, gains, mask, Band(share=1.0, low=-1e9, high=1e9))
    assert clipped.any()
    assert not bool(keep[mask].any())


def test_implicit_rewards_add_up_to_the_log_ratio() -> None:
    logp, old = pair()
    steps = torch.tensor([[0, 0, -1, 2], [1, -1, -1, -1]])
    rewards = implicit_rewards(logp, old, steps, 3, beta=0.05)
    inside = (steps >= 0).double()
    assert torch.allclose(rewards.sum(1), 0.05 * ((logp - old) * inside).sum(1))
    assert torch.allclose(rewards[0, 0], 0.05 * (logp - old)[0, :2].sum())
    assert rewards[1, 0] == 0
    assert not implicit_rewards(old, old, steps, 3).any()


def test_a_step_reward_model_learns_from_pairs() -> None:
    """Its weights change, and the loss on a fixed batch falls: nothing is detached on the way."""
    prm = TabularPolicy(torch.zeros(5, 4), learning=Learning("sgd", 2.0), seed=38)
    drawn = prm.sample(torch.arange(5).repeat_interleave(6)[:, None], 4)
    right = (drawn.tokens[:, 1:] == 1).sum(1) >= 2
    groups = [str(int(task)) for task in drawn.tokens[:, 0]]
    good, bad = map(list, zip(*success_pairs(right.tolist(), groups), strict=True))
    steps = torch.arange(4).expand(30, 4)
    seen = []
    for _ in range(15):
        logp = prm.logp(drawn.tokens, 1)
        scores = implicit_rewards(logp, drawn.logp, steps, 4).mean(1)
        loss = pair_logistic(scores[good], scores[bad])
        seen.append(loss.value.item())
        assert prm.step(loss.value) > 0
    assert seen[0] == pytest.approx(math.log(2))
    assert all(after < before for before, after in pairwise(seen))
    assert loss.stats["accuracy"] > 0.9


def test_pairs_are_of_one_group_and_both_kinds() -> None:
    found = success_pairs([True, False, False, True, True], ["a", "a", "b", "b", "c"])
    assert found == [(0, 1), (3, 2)]
    assert success_pairs([True, True], ["a", "a"]) == []
    with pytest.raises(UsageError):
        pair_logistic(torch.zeros(0), torch.zeros(0))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-3, 3), st.booleans()), min_size=2, max_size=6))
def test_listwise_is_the_mean_over_pairs(answers: list[tuple[float, bool]]) -> None:
    scores = torch.tensor([score for score, _ in answers], dtype=torch.float64)
    good = torch.tensor([flag for _, flag in answers])
    if bool(good.all()) or not bool(good.any()):
        with pytest.raises(UsageError, match="leave it out"):
            listwise(scores, good)
        return
    pairs = [
        math.log1p(math.exp(-(a - b))) for a, up in answers for b, low in answers if up and not low
    ]
    assert listwise(scores, good).value.item() == pytest.approx(sum(pairs) / len(pairs))
    two = listwise(torch.stack([scores, scores]), torch.stack([good, good]))
    assert two.value.item() == pytest.approx(sum(pairs) / len(pairs))


def test_a_region_is_held_and_the_rest_is_not() -> None:
    """First attempt: no policy gradient, a pull back to the reference. Second: the reverse."""
    logp, old = pair()
    ref = old + 0.5
    first = torch.tensor([[True, True, False, False], [True, False, False, False]])
    gains = torch.tensor([[0.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    gradient = coefficients(policy_gradient(logp, old, gains, MASK, None), logp)
    pull = coefficients(masked_kl(logp, ref, MASK & first), logp)
    assert not gradient[first].any()
    assert pull[MASK & first].all()
    assert gradient[0, 3] != 0
    assert not pull[~(MASK & first)].any()


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_estimators_gradients_are_those_of_the_divergences(estimator: str) -> None:
    """In expectation over the policy's own samples: k2 of KL(policy || ref), k3 of the reverse."""
    logits, ref = draw(1, 1, 6).requires_grad_(), draw(1, 1, 6, seed=5).log_softmax(-1)
    logp = logits.log_softmax(-1)
    every = torch.ones(1, 6, dtype=torch.float64)
    expected = torch.zeros_like(logits)
    for token in range(6):
        one = masked_kl(logp[..., token], ref[..., token], every[:, :1], estimator)  # type: ignore[arg-type]
        (each,) = torch.autograd.grad(one.value, logits, retain_graph=True)
        expected += logp[0, 0, token].exp().detach() * each
    forward = full_kl(logits, ref, every[:, :1]).value
    backward = (ref.exp() * (ref - logp)).sum()
    (exact,) = torch.autograd.grad(forward if estimator == "k2" else backward, logits)
    assert torch.allclose(expected, exact, atol=1e-12)


def test_a_centred_divergence_adds_up_to_zero() -> None:
    logp, old = pair()
    centred = centred_kl(logp, old, MASK)
    assert float(centred.sum()) == pytest.approx(0.0, abs=1e-12)
    assert not centred.requires_grad
    gap = ((logp - old) * MASK).sum(1)
    assert torch.allclose(centred, (gap - gap.mean()).detach())


def test_entropy() -> None:
    flat = torch.zeros(2, 4, 8, requires_grad=True)
    assert entropy(flat, MASK).value.item() == pytest.approx(math.log(8))
    peaked = torch.zeros(2, 4, 8)
    peaked[:, 2] = torch.tensor([1000.0] + [0.0] * 7)  # at an unsampled place
    assert float(entropy(peaked, MASK).stats["entropy"]) == pytest.approx(math.log(8))
    sharp = (draw(2, 4, 8) * 3).requires_grad_()
    (up,) = torch.autograd.grad(entropy(sharp, MASK).value, sharp)
    assert entropy(sharp + up, MASK).value.item() > entropy(sharp, MASK).value.item()
    assert not up[~MASK].any()


def test_rows_that_went_too_far_are_seen() -> None:
    old = torch.full((3, 4), -1.0)
    logp = old + torch.tensor([[0.0], [-1.0], [-1.0]])
    mask, gains = torch.ones(3, 4, dtype=torch.bool), torch.tensor([-1.0, -1.0, 1.0])
    assert fresh(logp, old, mask, 0.5).tolist() == [True, False, False]
    assert fresh(logp, old, mask, 0.5, gains).tolist() == [True, False, True]
