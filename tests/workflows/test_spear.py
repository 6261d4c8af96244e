"""Self-imitation with progressive exploration: what is paid, stored and replayed, one step of the
shipped loss on replayed rows, and the toy experiment that must fail when a part is broken."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from workflow_folder import bars, folder, toy_checks

from agentloop.cli import run
from agentloop.datasets.groups import tools_called
from agentloop.datasets.manifest import load_rows
from agentloop.datasets.replay import Replay, ReplayBuffer
from agentloop.records import Episode, Row
from agentloop.rewards import shape
from agentloop.training.schedules import CosineDecay, CosineRamp
from agentloop.trajectories.redact import Redactor

pytest.importorskip("torch")

import torch

from agentloop.training.replay_settings import ReplaySettings
from agentloop.training.toy import Learning, TabularPolicy
from agentloop.training.toy_rows import Turn, episode, update

FOLDER = folder("spear")
BARS = bars("spear")


def rollout(name: str, reward: float, calls: int, *, task: str = "t", run: str = "r") -> Episode:
    """`calls` turns with the tool, then an answer."""
    turns = [Turn((0,) if not at else (), (2,), (-1.0,), tool="look") for at in range(calls)]
    return episode(name, task, [*turns, Turn(() if calls else (0,), (1,), (-0.5,))], reward, run)


def twice(episode: Episode) -> Episode:
    """With each call made twice in the same turn."""
    [trajectory] = episode.trajectories
    nodes = tuple(
        replace(one, message=replace(one.message, tool_calls=one.message.tool_calls * 2))
        for one in trajectory.nodes
    )
    return replace(episode, trajectories=(replace(trajectory, nodes=nodes),))


def paid(parts: ModuleType, episodes: list[Episode], **given: float) -> dict[str, float]:
    return {name: gain for (name, *_), gain in parts.ToolCredit(**given).assign(episodes).items()}


def plan(parts: ModuleType, **given: object) -> Any:
    usual = {"bonus": CosineDecay(steps=10), "ramp": CosineRamp(steps=10), "drawn": 9}
    return parts.Progressive(**(usual | given))


def names(rows: Sequence[Row]) -> list[str]:
    return [row.episode for row in rows]


# --- unit properties ----------------------------------------------------------------------------


def test_a_call_is_paid_while_the_bonus_lasts(parts: ModuleType) -> None:
    group = [rollout("none", 0.0, 0), rollout("two", 0.0, 2), rollout("many", 0.0, 30)]
    found = paid(parts, group, scale=1.0)
    assert found == pytest.approx({"none": -0.4, "two": -0.2, "many": 0.6})  # 0, 0.2, at most 1
    assert set(paid(parts, group, scale=0.0).values()) == {0.0}
    assert parts.tool_turns(twice(group[1])) == 2 < len(tools_called(twice(group[1])))
    half = paid(parts, group, scale=CosineDecay(steps=10).at(5))
    assert half == pytest.approx({name: gain / 2 for name, gain in found.items()})


def test_credit_is_centred_and_not_divided(parts: ModuleType) -> None:
    group = [rollout("good", 1.0, 1), *[rollout(f"bad{at}", 0.0, 1) for at in range(3)]]
    found = paid(parts, group, scale=1.0)
    assert found["good"] == pytest.approx(0.75) and found["bad0"] == pytest.approx(-0.25)


def next_rows(lessons: Any, episodes: list[Episode]) -> tuple[list[Row], list[Row]]:
    found: tuple[list[Row], list[Row]] = lessons.next(episodes, redact=Redactor({}))
    return found


def test_only_what_was_better_than_its_group_and_called_a_tool_is_stored(parts: ModuleType) -> None:
    lessons = parts.Lessons(plan(parts))
    next_rows(lessons, [rollout("tool", 1.0, 1), rollout("head", 1.0, 0), rollout("bad", 0.0, 0)])
    assert [row["row"]["episode"] for row in lessons.buffer.state()["rows"]] == ["tool"]


def test_a_group_that_is_all_right_stores_nothing(parts: ModuleType) -> None:
    lessons = parts.Lessons(plan(parts))
    next_rows(lessons, [rollout(f"good{at}", 1.0, 1) for at in range(8)])
    assert len(lessons.buffer) == 0


def test_a_failure_that_the_bonus_lifted_is_not_imitated(parts: ModuleType) -> None:
    lessons = parts.Lessons(plan(parts, bonus=CosineDecay(steps=10), ramp=CosineRamp(steps=1)))
    next_rows(lessons, [rollout("spam", 0.0, 9), rollout("lazy", 0.0, 0)])
    next_rows(lessons, [rollout("good", 1.0, 1, run="s"), rollout("bad", 0.0, 1, run="s")])
    assert len(lessons.buffer) == 2
    assert names(next_rows(lessons, [])[1]) == ["good"]


def test_replay_rises_with_the_ramp_and_empties_the_buffer(parts: ModuleType) -> None:
    lessons = parts.Lessons(plan(parts, ramp=CosineRamp(steps=2)))
    for step, weight in enumerate([0.0, 0.5, 1.0, 1.0]):
        group = [rollout(f"good{step}", 1.0, 1, run=str(step)),
                 rollout(f"bad{step}", 0.0, 1, run=str(step))]  # fmt: skip
        fresh, again = next_rows(lessons, group)
        assert names(fresh) == [f"good{step}", f"bad{step}"]
        assert names(again) == ([f"good{step - 1}"] if step else [])
        assert [row.weight for row in again] == pytest.approx([weight] * len(again))


def test_without_a_ramp_nothing_is_replayed_or_taken_out(parts: ModuleType) -> None:
    lessons = parts.Lessons(plan(parts, ramp=CosineRamp(steps=2, peak=0.0)))
    for step in range(3):
        again = next_rows(lessons, [rollout(f"a{step}", 1.0, 1), rollout(f"b{step}", 0.0, 1)])[1]
        assert again == []
    assert len(lessons.buffer) == 3


def moved(rows: Sequence[Row], **given: object) -> torch.Tensor:
    start = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.4, 0.0, -0.6]]).double()
    policy = TabularPolicy(start, learning=Learning("sgd", 1.0))
    settings = {"reduction": "constant", **given}
    update(policy, rows, ReplaySettings.model_validate(settings))
    return policy.table.detach() - start


def test_a_replayed_row_moves_the_policy_by_its_weight_and_its_stored_log_probs() -> None:
    row = Row(
        episode="e", prompt=(), segments=((2,), (0,)), sampled=(False, True), reward=1.0,
        logprobs=((), (-0.9,)), advantages=(0.0, 0.5), weight=0.25,
    )  # fmt: skip
    logp = torch.tensor([0.4, 0.0, -0.6]).double().log_softmax(0)
    ratio = math.exp(float(logp[0]) + 0.9)
    assert 1.0 < ratio < 1.28
    expected = 0.25 * 0.5 * ratio * (torch.tensor([1.0, 0.0, 0.0]) - logp.exp())
    assert torch.allclose(moved([row])[2], expected)
    clipped = replace(row, logprobs=((), (-1.1,)))  # has become so much likelier since
    assert not moved([clipped]).any()


def test_covariance_silences_tokens_of_the_policys_loss_alone() -> None:
    row = Row(
        episode="e", prompt=(), segments=((2,), (0, 1)), sampled=(False, True), reward=1.0,
        logprobs=((), (-0.7, -1.1)), advantages=(0.0, 0.5),
    )  # fmt: skip
    rows = [row, replace(row, episode="f", advantages=(0.0, -0.5))]
    whole = moved(rows, clip=None)
    everything = {"share": 1.0, "low": -1e9, "high": 1e9}
    assert not moved(rows, clip=None, covariance=everything).any()
    assert torch.equal(moved(rows, clip=None, covariance={"low": 1e6, "high": 1e9}), whole)


# --- the toy experiment -------------------------------------------------------------------------


def test_the_bars_are_the_simulations() -> None:
    source = {"spear_minus_grpo": 0.07, "tool_minus_grpo": 0.03, "sil_minus_grpo": 0.03}
    assert source | {f"{name}.one_rate": bar for name, bar in source.items()} == BARS
    assert {check.seeds for check in toy_checks("spear")} == {tuple(range(8))}


def test_the_arms_have_as_many_rollouts_and_differ_by_their_parts(measures: ModuleType) -> None:
    found = measures.compare(9, iterations=3)
    assert {found[f"{arm}.rollouts"] for arm in measures.ARMS} == {3 * 6 * 8}
    assert found["grpo.replayed"] == found["tool.replayed"] == 0
    starts = {measures.world(9).success() for _ in measures.ARMS}
    assert len(starts) == 1 and 0.005 < starts.pop() < 0.02


SHORT = 90


def gain(measures: ModuleType, arm: str, seed: int = 5) -> float:
    return float(
        measures.learn(arm, seed, SHORT)[arm] - measures.learn("grpo", seed, SHORT)["grpo"]
    )


@pytest.mark.slow
def test_the_bonus_helps_and_not_when_its_sign_is_flipped(
    measures: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gain(measures, "tool") >= BARS["tool_minus_grpo"]
    true = shape.tool_bonus
    monkeypatch.setattr(
        shape, "tool_bonus",
        lambda calls, scale, *, each, most: -true(calls, scale, each=each, most=most),
    )  # fmt: skip
    assert gain(measures, "tool") < 0.0


@pytest.mark.slow
def test_imitating_oneself_helps_and_not_when_its_sign_is_flipped(
    measures: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gain(measures, "sil") >= BARS["sil_minus_grpo"]
    true = ReplayBuffer.draw

    def flipped(buffer: ReplayBuffer, n: int, *, step: int, seed: int) -> list[Row]:
        drawn = true(buffer, n, step=step, seed=seed)
        return [replace(row, advantages=tuple(-one for one in row.advantages)) for row in drawn]

    monkeypatch.setattr(ReplayBuffer, "draw", flipped)
    assert gain(measures, "sil") < 0.0
    monkeypatch.setattr(ReplayBuffer, "draw", lambda *_, **__: [])
    assert gain(measures, "sil") == 0.0


# --- cycles ---------------------------------------------------------------------------------------


def test_scripted_cycles_explore_first_and_imitate_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learned: list[list[Row]] = []
    known: set[Path] = set()
    for seed in ("0", "1"):
        command = ["cycle", str(FOLDER), "--model", "scripted", "--home", str(tmp_path), "--json"]
        assert run([*command, "--seed", seed]) == 0
        assert json.loads(capsys.readouterr().out)["lanes"]["policy"]["state"] != "skipped"
        [new] = set(tmp_path.glob("datasets/*/rows.jsonl")) - known
        known.add(new)
        learned.append(load_rows(new))
    first, second = learned
    assert {row.weight for row in first} == {1.0}
    assert any(max(row.advantages) > 0 for row in first)
    again = [row for row in second if row.weight < 1.0]
    assert again and {row.weight for row in again} == {CosineRamp(steps=3).at(1)}
    assert {row.episode for row in again} <= {row.episode for row in first}
    assert all(row.reward == 1.0 and max(row.advantages) > 0 for row in again)


def test_the_defaults_are_the_papers(parts: ModuleType) -> None:
    given = parts.Progressive()
    assert (given.bonus.steps, given.ramp.steps) == (200, 300)
    assert given.replay == Replay(capacity=2048, max_age=5, q=50.0, history=10_240, empty=True)
