"""Both small policies: one protocol, seeded, log-probs that are what was sampled, and learning."""

from __future__ import annotations

import pytest
import torch

from agentloop.errors import UsageError
from agentloop.training.losses import policy_gradient
from agentloop.training.toy import (
    Learning,
    TabularPolicy,
    TinyLM,
    TinySize,
    ToyPolicy,
    whole_prefix,
)


def table(seed: int = 0) -> TabularPolicy:
    return TabularPolicy(torch.zeros(7, 7), learning=Learning("adam", 0.3), seed=seed)


def tiny(seed: int = 0) -> TinyLM:
    size = TinySize(vocabulary=7, longest=12, width=32, layers=2, heads=2)
    return TinyLM(size, learning=Learning("adam", 1e-2), seed=seed)


BOTH = pytest.mark.parametrize("make", [table, tiny])
PROMPTS = torch.tensor([[1, 2], [3, 4], [1, 1]])


@BOTH
def test_sampled_log_probs_are_the_policys(make: type) -> None:
    policy: ToyPolicy = make()
    assert isinstance(policy, ToyPolicy)
    drawn = policy.sample(PROMPTS, 8)
    assert torch.equal(drawn.tokens[:, :2], PROMPTS)
    assert torch.allclose(drawn.logp, policy.logp(drawn.tokens, 2), atol=1e-5)
    assert policy.logits(drawn.tokens, 2).shape == (3, 8, 7)
    hot = policy.sample(PROMPTS, 8, temperature=2.0)
    expected = (policy.logits(hot.tokens, 2) / 2).log_softmax(-1)
    chosen = expected.gather(-1, hot.tokens[:, 2:, None]).squeeze(-1)
    assert torch.allclose(hot.logp, chosen, atol=1e-5)
    with pytest.raises(UsageError):
        policy.sample(PROMPTS, 2, temperature=0.0)


@BOTH
def test_the_seed_decides_and_nothing_else(make: type) -> None:
    torch.manual_seed(1)
    first = make(3).sample(PROMPTS, 6).tokens
    torch.manual_seed(2)
    torch.rand(5)
    assert torch.equal(make(3).sample(PROMPTS, 6).tokens, first)
    assert not torch.equal(make(4).sample(PROMPTS, 6).tokens, first)


@BOTH
def test_a_reward_is_learned_and_a_snapshot_undoes_it(make: type) -> None:
    policy: ToyPolicy = make()
    start = policy.snapshot()
    prompts = PROMPTS.repeat(30, 1)
    rates = []
    for _ in range(25):
        drawn = policy.sample(prompts, 4)
        right = (drawn.tokens[:, 2:] == 5).float().mean(1)
        rates.append(float(right.mean()))
        logp = policy.logp(drawn.tokens, 2)
        policy.step(
            policy_gradient(
                logp, drawn.logp, right - right.mean(), torch.ones_like(logp).bool()
            ).value
        )
    assert rates[0] < 0.3 < 0.7 < rates[-1]
    policy.restore(start)
    again = float((policy.sample(prompts, 4).tokens[:, 2:] == 5).float().mean())
    assert again < 0.3


def test_a_loss_that_is_not_finite_is_refused() -> None:
    policy = table()
    with pytest.raises(UsageError, match="learning rate"):
        policy.step(policy.at(torch.tensor([0])).sum() * float("nan"))


def test_sizes() -> None:
    assert sum(one.numel() for one in TinyLM(TinySize(64)).parameters()) <= 1_000_000
    with pytest.raises(UsageError, match="more than"):
        tiny().sample(PROMPTS, 12)


def test_kept_keys_give_what_the_whole_gives() -> None:
    model = tiny()
    tokens = model.sample(PROMPTS, 10).tokens
    other = tokens.clone()
    other[:, 6:] = 0
    assert torch.allclose(model.logits(tokens, 2)[:, :4], model.logits(other, 2)[:, :4], atol=1e-6)


def test_the_whole_prefix_has_a_row_of_its_own() -> None:
    context, rows = whole_prefix(3, 2)
    prompts = torch.arange(4)
    seen = [int(context(torch.tensor([[int(p)]]))[0]) for p in prompts]
    seen += [int(context(torch.tensor([[int(p), a]]))[0]) for p in prompts for a in range(3)]
    assert len(set(seen)) == len(seen) == rows(4)
    assert max(seen) == rows(4) - 1


def test_features_generalise() -> None:
    """Two contexts with the same features learn together."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    policy = TabularPolicy(torch.zeros(2, 3), features=features)
    policy.step(-policy.at(torch.tensor([0])).log_softmax(-1)[0, 1])
    odds = policy.at(torch.arange(3)).softmax(-1)[:, 1].tolist()
    assert odds[0] == odds[1] > odds[2] == pytest.approx(1 / 3)
    with pytest.raises(UsageError):
        TabularPolicy(torch.zeros(3, 3), features=features)
