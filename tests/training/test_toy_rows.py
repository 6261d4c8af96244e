"""A toy's step is the trainer's: rows and tensors give the same one, and an anchor holds it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from agentloop.datasets.credit import GroupCredit  # noqa: E402
from agentloop.datasets.rl_rows import rl_rows  # noqa: E402
from agentloop.errors import UsageError  # noqa: E402
from agentloop.training.anchors import Anchor  # noqa: E402
from agentloop.training.replay_settings import ReplaySettings  # noqa: E402
from agentloop.training.toy import Drawn, Learning, TabularPolicy  # noqa: E402
from agentloop.training.toy_rows import Turn, aligned, episode, learn, update  # noqa: E402
from agentloop.trajectories.redact import Redactor  # noqa: E402

HELD = {"weight": 0.5, "estimator": "k2"}


def policy() -> TabularPolicy:
    table = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    return TabularPolicy(table, learning=Learning("sgd", 0.5), seed=1)


def drawn() -> Drawn:
    return policy().sample(torch.full((6, 1), 3), 2)


def settings(**given: object) -> ReplaySettings:
    return ReplaySettings.model_validate(given)


def moved(one: TabularPolicy) -> torch.Tensor:
    return one.table.detach() - policy().table.detach()


def test_rows_and_tensors_give_the_same_step() -> None:
    made, given = drawn(), settings(entropy=0.1)
    gains = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0]).double()
    episodes = [
        episode(str(at), "t", [Turn((3,), tuple(ids[1:]), tuple(logp))], float(gains[at]))
        for at, (ids, logp) in enumerate(zip(made.tokens.tolist(), made.logp.tolist(), strict=True))
    ]
    credits = GroupCredit(baseline="mean").assign(episodes)
    rows = rl_rows(episodes, credits, shares={}, redact=Redactor({}))
    one, other = policy(), policy()
    found = update(one, rows, given)
    paid = (gains - gains.mean())[:, None].expand_as(made.logp)
    assert learn(other, aligned(made.tokens, made.logp, paid, given), given) == found
    assert moved(one).any()
    torch.testing.assert_close(moved(other), moved(one))


def test_what_was_not_sampled_is_not_learned_from() -> None:
    made, given = drawn(), settings()
    gains, first = torch.ones_like(made.logp), torch.tensor([True, False]).expand_as(made.logp)
    one, other = policy(), policy()
    learn(one, aligned(made.tokens, made.logp, gains, given, sampled=first), given)
    learn(other, aligned(made.tokens[:, :2], made.logp[:, :1], gains[:, :1], given), given)
    torch.testing.assert_close(moved(one), moved(other))


def test_an_anchor_pulls_back_and_follows() -> None:
    made, given = drawn(), settings(anchor=HELD)
    nothing = torch.zeros_like(made.logp)
    tokens = aligned(made.tokens, made.logp, nothing, given)
    with pytest.raises(UsageError, match="give one"):
        learn(policy(), tokens, given)
    one = policy()
    anchor = Anchor(one, keep=0.5)
    with torch.no_grad():
        one.table[3, 0] += 1.0
    before = anchor.distance()
    found = learn(one, tokens, given, anchor=anchor)
    assert found["kl"] > 0
    assert float(moved(one)[3, 0]) < 1.0
    assert anchor.distance() < before / 1.9
