"""Learning from wrong answers: which rows enter the loss, one step of the shipped loss on stored
rows, and the toy experiment that must fail without its wrong answers or with their sign flipped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from workflow_folder import bars, folder

from agentloop.datasets.manifest import load_rows, rows_path
from agentloop.records import Dataset, Episode, Policy, Row
from agentloop.store.archive import Archive

pytest.importorskip("torch")

import torch
from torch import Tensor

from agentloop.training import replay_tensors
from agentloop.training.losses import Loss, Negatives
from agentloop.training.replay_settings import ReplaySettings
from agentloop.training.toy import Learning, TabularPolicy
from agentloop.training.toy_rows import Turn, episode, update
from agentloop.trajectories.redact import Redactor

FOLDER = folder("nft")
BARS = bars("nft")
LESSONS = 12
"""Iterations of the toy that are enough to see whether wrong answers teach."""


def group(right: int, of: int, task: str = "t") -> list[Episode]:
    """`of` answers of two tokens to one prompt, `right` of which are right."""
    return [
        episode(f"{task}{at}", task, [Turn((0,), (1, at % 3), (-1.0, -0.5))], float(at < right))
        for at in range(of)
    ]


def rows_of(measures: ModuleType, episodes: list[Episode]) -> list[Row]:
    return list(measures.RECIPE.build(episodes, redact=Redactor({})).rows)


# --- unit properties ----------------------------------------------------------------------------


def test_groups_of_one_kind_are_left_out_and_not_clamped(measures: ModuleType) -> None:
    episodes = [*group(8, 8, "easy"), *group(0, 8, "hard"), *group(1, 8, "mixed")]
    rows = rows_of(measures, episodes)
    assert {row.episode[:5] for row in rows} == {"mixed"}
    assert {row.share for row in rows} == {1 / 8}
    assert [row.reward for row in rows] == [1.0] + [0.0] * 7


def test_the_share_is_of_the_whole_group_also_when_a_batch_has_a_part_of_it(
    measures: ModuleType,
) -> None:
    rows = rows_of(measures, group(6, 8))
    assert [row.share for row in rows[:2]] == [0.75, 0.75]


def table() -> TabularPolicy:
    logits = torch.tensor([[0.1, 0.2, -0.3], [0.5, 0.0, 0.2]], dtype=torch.float64)
    return TabularPolicy(logits, learning=Learning("sgd", 1.0))


def step(measures: ModuleType, arm: str, rows: list[Row]) -> torch.Tensor:
    policy = table()
    before = policy.table.detach().clone()
    update(policy, rows, ReplaySettings.model_validate(measures.ARMS[arm]))
    return policy.table.detach() - before


def test_without_negatives_wrong_rows_move_nothing(measures: ModuleType) -> None:
    rows = rows_of(measures, group(3, 8))
    wrong = [row for row in rows if not row.reward]
    assert not step(measures, "rft", wrong).any()
    assert step(measures, "nft", wrong).any()
    right = [row for row in rows if row.reward]
    assert torch.equal(step(measures, "nft", right), step(measures, "rft", right))


def test_advantages_are_not_read_by_the_likelihood_of_both_kinds(measures: ModuleType) -> None:
    """Weighing by the share and by an advantage would count a prompt's difficulty twice."""
    rows = rows_of(measures, group(3, 8))
    other = [replace(row, advantages=tuple(5 * one for one in row.advantages)) for row in rows]
    assert torch.equal(step(measures, "nft", rows), step(measures, "nft", other))
    assert not torch.equal(step(measures, "grpo", rows), step(measures, "grpo", other))


def test_a_sum_over_a_thousand_does_not_depend_on_how_long_rows_are(measures: ModuleType) -> None:
    """Twice the rows move the table twice as far: nothing is averaged away."""
    rows = rows_of(measures, group(3, 8))
    once, twice = step(measures, "nft", rows), step(measures, "nft", rows + rows)
    assert torch.allclose(twice, 2 * once)


def test_ratios_are_to_the_stored_log_probs(measures: ModuleType) -> None:
    """A step on one wrong row, against the formula: w p R / (1 - p) / max((1 - p R) / (1 - p), 1)
    on each sampled token, whatever the policy's own probability was when it was sampled."""
    [row] = [row for row in rows_of(measures, group(6, 8)) if row.episode == "t7"]
    logp = table().logp(torch.tensor([[0, 1, 1]]), 1).detach()[0]
    p = row.share or 0.0
    for place, old in enumerate((-1.0, -0.5)):
        ratio = math.exp(float(logp[place]) - old)
        coefficient = (1 - p) * p * ratio / (1 - p) / max((1 - p * ratio) / (1 - p), 1.0) / 1000
        chosen, context = 1, (0, 1)[place]
        moved = step(measures, "nft", [row])[context]
        expected = -coefficient * (1 - math.exp(float(logp[place])))
        assert float(moved[chosen]) == pytest.approx(expected)


# --- the toy experiment -------------------------------------------------------------------------


def test_the_bars_are_the_pilots() -> None:
    pilots = {"nft_minus_rft": 0.04, "nft_over_grpo": 0.8}
    assert pilots | {f"{name}.one_rate": bar for name, bar in pilots.items()} == BARS


def test_the_arms_have_the_same_start_and_as_many_rollouts(measures: ModuleType) -> None:
    found = measures.compare(9, iterations=2)
    assert len({found[f"{arm}.before"] for arm in measures.ARMS}) == 1
    assert {found[f"{arm}.rollouts"] for arm in measures.ARMS} == {2 * 32 * 8}
    assert 0.01 < found["nft.before"] < 0.06
    assert found["nft.abs_log_ratio"] > 0  # some updates are off-policy


@pytest.mark.slow
def test_wrong_answers_teach_and_not_when_their_sign_is_flipped(
    measures: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gain() -> float:
        nft, rft = (measures.learn(arm, 5, LESSONS)[arm] for arm in ("nft", "rft"))
        return float(nft - rft)

    def weighed(by: float) -> Callable[..., Loss]:
        def loss(
            logp: Tensor, old: Tensor, mask: Tensor, correct: Tensor, share: Tensor, rule: Negatives
        ) -> Loss:
            return true(logp, old, mask, correct, share, replace(rule, weight=by * rule.weight))

        return loss

    assert gain() > 0.01
    true = replay_tensors.negative_aware
    monkeypatch.setattr(replay_tensors, "negative_aware", weighed(-1.0))
    assert gain() < -0.01
    monkeypatch.setattr(replay_tensors, "negative_aware", weighed(0.0))
    assert gain() == 0.0


# --- a cycle --------------------------------------------------------------------------------------


def test_a_scripted_cycle_trains_on_mixed_groups_with_their_shares(
    tmp_path: Path, report: dict[str, dict[str, dict[str, str]]]
) -> None:
    with Archive(tmp_path) as archive:
        policy = archive.get(report["lanes"]["policy"]["candidate"], Policy)
        assert policy.dataset is not None
        dataset = archive.get(policy.dataset, Dataset)
        rows = load_rows(rows_path(tmp_path / "datasets", dataset))
    assert len(rows) >= 4 and all(0 < (row.share or 0.0) < 1 for row in rows)
    by_group = {row.group: {one.reward for one in rows if one.group == row.group} for row in rows}
    assert all(rewards == {0.0, 1.0} for rewards in by_group.values())
    assert "group of one reward" in str(dataset.spec["left_out"])
