"""What is drawn, and the log-probability reported for it."""

from __future__ import annotations

import math
from collections import Counter

import pytest

torch = pytest.importorskip("torch")

from agentloop.serving.sampling import Draw, Sampling, sample  # noqa: E402


def draws(logits, n, **given):
    """`n` independent draws and the log-prob reported for each token."""
    row = Draw(Sampling(**{"seed": 0, **given}))
    tokens, values = Counter(), {}
    for _ in range(n):
        token, logprob = sample(logits.clone()[None], [row])
        tokens[token[0]] += 1
        values[token[0]] = logprob[0]
    return tokens, values


def test_frequencies_follow_the_reported_probabilities():
    logits = torch.full((1000,), -30.0)
    logits[[3, 400, 999]] = torch.tensor([1.0, 2.0, 0.0])
    tokens, values = draws(logits, 3000, temperature=0.7)
    assert set(tokens) == {3, 400, 999}
    for token, count in tokens.items():
        assert count / 3000 == pytest.approx(math.exp(values[token]), abs=0.03)
    expected = (logits / 0.7).log_softmax(-1)
    assert values[400] == pytest.approx(float(expected[400]), abs=1e-5)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.5}, {0}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_k": 3, "top_p": 0.6}, {0, 1}),
        ({"top_k": 1}, {0}),
    ],
)
def test_truncation_keeps_the_smallest_set_and_renormalises(given, kept):
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    tokens, values = draws(logits, 400, temperature=1.0, **given)
    assert set(tokens) == kept
    assert sum(math.exp(v) for v in values.values()) == pytest.approx(1, abs=1e-5)


def test_top_p_over_a_flat_vocabulary_widens_until_it_suffices():
    tokens, values = draws(torch.zeros(5000), 300, temperature=1.0, top_p=0.5)
    assert len(tokens) > 200
    assert all(v == pytest.approx(-math.log(2500), abs=1e-3) for v in values.values())


def test_rows_are_independent_and_greedy_ignores_seeds():
    logits = torch.randn(4, 700, generator=torch.Generator().manual_seed(1))
    rows = [Draw(Sampling(temperature=t, seed=3)) for t in (0.0, 1.0, 0.0, 0.5)]
    tokens, logprobs = sample(logits.clone(), rows)
    best = logits.argmax(-1).tolist()
    assert (tokens[0], tokens[2]) == (best[0], best[2])
    assert logprobs[0] == pytest.approx(float(logits[0].log_softmax(-1).max()), abs=1e-5)
    alone, _ = sample(logits[1:2].clone(), [Draw(Sampling(temperature=1.0, seed=3))])
    assert alone[0] == tokens[1]
