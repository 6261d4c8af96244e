"""A replay phase from a job to a result: adapters and full weights, anchors, guards, wrong rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_llama import TEMPERATURE, llama, log_probs, rows, saved

from agentloop.errors import TrainingError, UsageError
from agentloop.records import Row, TrainingJob, TrainingResult
from agentloop.training import session
from agentloop.training.artifact import finished
from agentloop.training.replay import train
from agentloop.trajectories.rows_file import NAME, lines_of, write_rows

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def given() -> list[Row]:
    return rows(llama(), groups=4, size=4)


def job(base: Path, out: Path, given: Sequence[Row], **settings: Any) -> TrainingJob:
    data = out.with_suffix(".data")
    data.mkdir()
    write_rows(data, lines_of(given), {})
    return TrainingJob(
        method="agentloop.training.replay:train",
        base=str(base),
        dataset=str(data / NAME),
        out=str(out),
        adapter=settings.pop("adapter", None),
        settings={
            "batch_size": 8, "learning_rate": 2e-3, "r": 4, "precision": "float32", **settings,
        },
        seed=5,
    )  # fmt: skip


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, float]]:
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith('{"step"')]
    return [json.loads(line) for line in found]


def likelier(base: Path, result: TrainingResult, given: Sequence[Row]) -> float:
    """How much likelier good rows became than bad ones, in nats per row."""
    from peft import PeftModel

    start, model = llama(), llama()
    directory = Path(result.adapter)
    if (directory / "adapter_config.json").is_file():
        model = PeftModel.from_pretrained(model, str(directory))
    else:
        model.load_state_dict(load_file(directory / "model.safetensors"), strict=False)
    total = 0.0
    for row in given:
        ids = [token for part in row.segments for token in part]
        flags = [flag for part, flag in zip(row.segments, row.sampled, strict=True) for _ in part]
        with torch.no_grad():
            gap = log_probs(model, ids) - log_probs(start, ids)
        total += float(gap[torch.tensor(flags[1:])].sum()) * max(row.advantages, key=abs)
    return total / len(given)


@pytest.mark.parametrize("weights", ["lora", "full"])
@pytest.mark.parametrize("loss", ["policy_gradient", "negative_aware"])
def test_a_phase_makes_good_rows_likelier(
    base: Path, tmp_path: Path, given: list[Row], capsys: Any, weights: str, loss: str
) -> None:
    order = job(base, tmp_path / "out", given, weights=weights, loss=loss, epochs=5)
    result = train(order)
    assert likelier(base, result, given) > 0.05
    assert result.metrics["ratio_at_start"] == pytest.approx(1.0, abs=1e-4)
    assert result.metrics["abs_log_ratio_at_start"] < 1e-4
    assert result.metrics["steps"] == 10
    assert result.metrics["rows"] == 16
    told = lines(capsys)
    assert [each["step"] for each in told] == list(range(1, 11))
    expected = {"loss", "ratio", "abs_log_ratio", "clip_share", "kl", "entropy", "grad_norm"}
    assert expected <= told[0].keys()
    assert told[-1]["kl"] > told[0]["kl"] >= 0
    assert finished(order) == result
    names = {each.name for each in Path(result.adapter).iterdir()}
    own = {"adapter_config.json", "adapter_model.safetensors"}
    whole = {"config.json", "model.safetensors"}
    assert (whole if weights == "full" else own) < names


def test_the_same_job_gives_the_same_weights(base: Path, tmp_path: Path, given: list[Row]) -> None:
    settings: dict[str, Any] = {"covariance": {"share": 0.2, "low": -9, "high": 9}}
    one = train(job(base, tmp_path / "one", given, **settings))
    two = train(job(base, tmp_path / "two", given, **settings))
    assert one.sha256 == two.sha256


@pytest.mark.parametrize("to", ["base", "start", "ema"])
def test_an_anchor_holds_the_policy(base: Path, tmp_path: Path, given: list[Row], to: str) -> None:
    free = train(job(base, tmp_path / "free", given, epochs=10))
    anchor = {"to": to, "weight": 5.0, "keep": 0.99}
    held = train(job(base, tmp_path / "held", given, epochs=10, anchor=anchor))
    assert held.metrics["last_kl"] < free.metrics["last_kl"] / 3


def test_the_base_and_the_start_differ_for_a_policy_that_learned(
    base: Path, tmp_path: Path, given: list[Row], capsys: Any
) -> None:
    first = train(job(base, tmp_path / "first", given, epochs=10))
    seen = {}
    for to in ("base", "start"):
        capsys.readouterr()
        anchor = {"to": to, "weight": 1e-6}
        train(job(base, tmp_path / to, given, adapter=first.adapter, anchor=anchor, max_steps=1))
        seen[to] = lines(capsys)[0]["kl"]
    assert seen["start"] == pytest.approx(0.0, abs=1e-6)
    assert seen["base"] > 0.01


def test_full_weights_go_on_from_full_weights_and_are_not_held_to_a_base(
    base: Path, tmp_path: Path, given: list[Row]
) -> None:
    first = train(job(base, tmp_path / "first", given, weights="full"))
    again = {"weights": "full", "adapter": first.adapter}
    held = {"anchor": {"to": "start", "weight": 0.1}}
    second = train(job(base, tmp_path / "second", given, **again, **held))
    assert second.metrics["abs_log_ratio_at_start"] > 0.001
    with pytest.raises(UsageError, match="held to the base"):
        train(job(base, tmp_path / "third", given, **again, anchor={"weight": 0.1}))


def test_full_weights_with_an_adapter_merged_are_not_held_to_a_base_either(
    base: Path, tmp_path: Path, given: list[Row]
) -> None:
    adapter = train(job(base, tmp_path / "adapter", given, max_steps=1)).adapter
    merged = {"weights": "full", "adapter": adapter, "max_steps": 1}
    with pytest.raises(UsageError, match=r"held to the base.*weights: lora"):
        train(job(base, tmp_path / "base", given, **merged, anchor={"first": 0.1}))
    held = {"to": "start", "weight": 0.1}
    result = train(job(base, tmp_path / "start", given, **merged, anchor=held))
    assert result.metrics["kl_at_start"] == pytest.approx(0.0, abs=1e-6)


def test_a_moving_average_goes_on_from_round_to_round(
    base: Path, tmp_path: Path, given: list[Row]
) -> None:
    ema: dict[str, Any] = {"anchor": {"to": "ema", "weight": 1e-6, "keep": 0.9}}
    first = session.train(job(base, tmp_path / "one", given, epochs=5, **ema))
    state = Path(f"{first.adapter}.optimizer")
    again = {"adapter": first.adapter, "max_steps": 1, **ema}
    anew = session.train(job(base, tmp_path / "anew", given, **again))
    on = session.train(job(base, tmp_path / "on", given, optimizer=str(state), **again))
    assert anew.metrics["kl_at_start"] == pytest.approx(0.0, abs=1e-7)
    assert on.metrics["kl_at_start"] > 1e-3
    kept = [load_file(Path(f"{one.adapter}.optimizer") / session.AVERAGE) for one in (first, on)]
    learned = load_file(Path(first.adapter) / "adapter_model.safetensors")
    for name, value in kept[1].items():  # one step, from what it was to where the policy then was
        stood = learned[name.replace(".default", "")]
        assert torch.allclose(value, kept[0][name].lerp(stood, 0.1), atol=1e-6)


def test_a_round_that_ends_in_nothing_finite_leaves_no_state(
    base: Path, tmp_path: Path, given: list[Row]
) -> None:
    order = job(base, tmp_path / "out", given, learning_rate=1e39, max_steps=1)
    with pytest.raises(TrainingError, match="not finite"):
        session.train(order)
    assert not Path(f"{order.out}.optimizer").exists()
    assert finished(order) is None


def test_one_update_that_goes_far_is_seen_by_the_next(
    base: Path, tmp_path: Path, given: list[Row]
) -> None:
    """Two steps, and a guard whose patience is three."""
    order = job(base, tmp_path / "out", given, learning_rate=0.5, max_steps=2)
    with pytest.raises(TrainingError, match="left its reference at step 2"):
        train(order)


def test_an_entropy_bonus_keeps_entropy(base: Path, tmp_path: Path, given: list[Row]) -> None:
    free = train(job(base, tmp_path / "free", given, epochs=10))
    guards = {"max_kl": None}
    paid = train(job(base, tmp_path / "paid", given, epochs=10, entropy=2.0, guards=guards))
    assert paid.metrics["last_entropy"] > free.metrics["last_entropy"] + 0.05


def test_a_phase_ends_when_it_is_too_far_from_what_sampled(
    base: Path, tmp_path: Path, given: list[Row]
) -> None:
    result = train(job(base, tmp_path / "out", given, epochs=50, stop_at=0.05))
    assert 1 < result.metrics["steps"] < 100


def test_a_guard_stops_the_phase_and_nothing_is_written(
    base: Path, tmp_path: Path, given: list[Row]
) -> None:
    guards = {"max_kl": 0.001, "patience": 2}
    order = job(base, tmp_path / "out", given, epochs=20, learning_rate=0.1, guards=guards)
    with pytest.raises(TrainingError, match="left its reference"):
        train(order)
    assert finished(order) is None


def test_wrong_rows_are_refused(base: Path, tmp_path: Path, given: list[Row]) -> None:
    with pytest.raises(UsageError, match="max_length"):
        train(job(base, tmp_path / "long", given, max_length=8))
    decided = [replace(row, share=1.0) for row in given]
    with pytest.raises(UsageError, match="left out"):
        train(job(base, tmp_path / "decided", decided, loss="negative_aware"))


def test_at_another_temperature_the_ratios_are_not_one(
    base: Path, tmp_path: Path, given: list[Row]
) -> None:
    """The stored log-probs are those of the tempered policy, so the learner's must be as well. The
    mean ratio would not show it: over what was sampled, it is 1 for any two distributions."""
    unsaid = [replace(row, sampling=None) for row in given]
    right = train(job(base, tmp_path / "right", unsaid, temperature=TEMPERATURE, max_steps=1))
    wrong = train(job(base, tmp_path / "wrong", unsaid, max_steps=1))
    assert right.metrics["abs_log_ratio_at_start"] < 1e-4
    assert wrong.metrics["abs_log_ratio_at_start"] > 0.05
