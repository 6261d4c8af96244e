"""How often the shipped decision promotes what it should not, over whole simulated cycles.

Fast versions of what `python -m benchmarks.gates` measures; the issue's sizes are `slow`.
"""

from __future__ import annotations

import pytest

from agentloop.gates.betting import evidence
from benchmarks.gates import ALPHA, LANES, at_most, chain, finals, fixed_n, fresh, measure
from benchmarks.harness import Check, Result


def test_the_fixed_sample_size_is_the_textbook_s() -> None:
    """By hand: ((1.6449 * sqrt(0.4) + 1.2816 * sqrt(0.36)) / 0.2)^2 = 81.8."""
    assert fixed_n(0.2, discordant=0.4, alpha=0.05, power=0.9) == 82
    assert fixed_n(0.1, discordant=0.5, alpha=0.05, power=0.9) == 425
    assert fixed_n(0.1, discordant=0.5, alpha=0.025, power=0.9) == 522


def test_limits_of_a_binomial() -> None:
    assert at_most(1000, 0.05) == 64 and at_most(200, 0.05) == 16


def promoted(found: list[tuple[object, bool]]) -> int:
    return sum(moved for _, moved in found)


def test_null_cycles_of_three_lanes() -> None:
    found = fresh(60)
    assert promoted(found) <= at_most(60, ALPHA)  # type: ignore[arg-type]
    verdicts = finals(found)
    assert 50 <= len(verdicts) < 60  # where every lane is worse or futile nothing else is judged
    # some of them stop before the end, most for want of an effect
    assert {"futile", "limit"} <= {verdict.stopped for verdict in verdicts}


def test_worse_challengers_and_real_gains() -> None:
    assert promoted(fresh(60, gain=-0.05, lanes=LANES[:1], seed=1)) == 0  # type: ignore[arg-type]
    found = fresh(20, gain=0.3, lanes=LANES[:1], n=424, seed=2)
    assert promoted(found) == 20  # type: ignore[arg-type]
    assert sum(verdict.n for verdict in finals(found)) / 20 <= 424 / 2


def test_chains_of_null_cycles_on_one_hold_out() -> None:
    moved = sum(chain(50, seed=seed, lanes=LANES[:1], size=96) > 0 for seed in range(8))
    assert moved <= at_most(8, ALPHA)


def test_a_chain_that_does_not_spend_its_alpha_would_be_caught() -> None:
    """The control: with the same alpha at every use, chance does pass in the end."""
    import numpy as np

    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(40):
        for _ in range(50):
            before, after = rng.random((2, 96)) < 0.4
            if evidence(list(after.astype(float) - before)) >= 1 / ALPHA:
                passed += 1
                break
    assert passed > at_most(40, ALPHA)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    """1,000 null cycles of three lanes, 1,000 worse challengers, 200 chains of 50 cycles on one
    hold-out, samples by true effect."""
    result: Result = measure(quick=False)
    with capsys.disabled():
        for row in result.rows:
            print(row)
    failed: list[Check] = [check for check in result.checks if not check.ok]
    assert not failed
