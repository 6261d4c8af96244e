"""DPO and KTO on a tiny real model: TRL's loss and gradient exactly, and what a phase leaves."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import chat_llama
import pytest

from agentloop.datasets.manifest import freeze, rows_path
from agentloop.errors import TrainingError, UsageError
from agentloop.records import Message, Row, TrainingJob, TrainingResult
from agentloop.training.job import ProcessTrainer

pytest.importorskip("trl")
pytestmark = [
    pytest.mark.integration, pytest.mark.timeout(400), pytest.mark.filterwarnings("default")
]  # fmt: skip

METHOD = "agentloop.training.preference:"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_llama.make(tmp_path_factory.mktemp("base"))


def preferences(base: Path, n: int) -> list[Row]:
    """Two turns each: the good answer says yes, the bad one goes on about no."""
    tokenizer = chat_llama.tokenizer_of(base)

    def ids(text: str) -> tuple[int, ...]:
        return chat_llama.ids_of(tokenizer, text)

    return [
        Row(
            episode=f"ep-{at}-{good}",
            prompt=(Message(role="user", content="Say it" + "!" * (at % 5)),),
            segments=(
                ids("Let me see.<|im_end|>"),
                ids(f"\n<|im_start|>user\n{at}<|im_end|>\n<|im_start|>assistant\n"),
                ids("yes<|im_end|>" if good else "no, " * (1 + at % 3) + "no<|im_end|>"),
            ),
            sampled=(True, False, True),
            pair=f"pair-{at}",
            label=good,
        )
        for at in range(n)
        for good in (True, False)
    ]


def job(base: Path, tmp_path: Path, method: str, rows: list[Row], **fields: Any) -> TrainingJob:
    dataset = freeze(rows, {}, tmp_path / "datasets")
    settings = {"epochs": 4, "batch_size": 4, "learning_rate": 1e-2, "precision": "float32"}
    return TrainingJob(
        method=METHOD + method,
        base=str(base),
        dataset=str(rows_path(tmp_path / "datasets", dataset)),
        out=str(tmp_path / fields.pop("out", "out")),
        settings=settings | {"guards": {"max_kl": None}} | fields.pop("settings", {}),
        **fields,
    )


def run(given: TrainingJob) -> TrainingResult:
    """In this process: torch is loaded once for all tests."""
    from agentloop.training import preference

    method: Any = getattr(preference, given.method.rpartition(":")[2])
    result: TrainingResult = method(given)
    return result


def first_loss(capsys: pytest.CaptureFixture[str]) -> float:
    """Of the first step of the runs since it was last asked for."""
    lines = capsys.readouterr().out.splitlines()
    return float(json.loads(next(line for line in lines if line.startswith("{")))["loss"])


def test_dpo_starts_at_log_two_and_learns_to_prefer(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = preferences(base, 9)
    given = job(base, tmp_path, "dpo", rows)
    result = asyncio.run(ProcessTrainer(deadline=300).train(given))
    print(Path(f"{given.out}.job", "log.txt").read_text())
    assert first_loss(capsys) == pytest.approx(math.log(2), rel=1e-4)
    assert result.metrics["last_loss"] < 0.2
    assert (result.metrics["pairs"], result.metrics["steps"]) == (9, 12)
    names = {entry.name for entry in Path(result.adapter).iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "manifest.json", "result.json",
    }  # fmt: skip
    # The reference of a further phase is the adapter that it starts from, so it starts level too.
    again = job(base, tmp_path, "dpo", rows, out="again", adapter=result.adapter)
    further = run(again)
    assert first_loss(capsys) == pytest.approx(math.log(2), rel=1e-4)
    assert further.sha256 != result.sha256


def test_kto_learns_from_labels_alone(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    rows = [replace(row, pair="") for row in preferences(base, 8)]
    given = job(base, tmp_path, "kto", rows, settings={"epochs": 6})
    result = run(given)
    assert first_loss(capsys) == pytest.approx(0.5, rel=1e-3)
    assert result.metrics["last_loss"] < 0.35
    assert result.metrics["rows"] == 16
    assert result.metrics["last_kl"] > 0.2  # bad rows are far from where they were
    stopped = job(
        base,
        tmp_path,
        "kto",
        rows,
        out="stopped",
        settings={"epochs": 6, "guards": {"max_kl": 0.1}},
    )
    with pytest.raises(TrainingError, match="left its reference"):
        run(stopped)


def test_all_weights_can_be_learned_and_gone_on_from(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = preferences(base, 4)
    full = {"weights": "full", "learning_rate": 1e-3}
    result = run(job(base, tmp_path, "dpo", rows, settings=full))
    names = {entry.name for entry in Path(result.adapter).iterdir()}
    assert names == {"config.json", "model.safetensors", "manifest.json", "result.json"}
    assert result.metrics["last_loss"] < result.metrics["first_loss"]
    capsys.readouterr()
    given = job(base, tmp_path, "dpo", rows, out="on", adapter=result.adapter, settings=full)
    run(given)
    assert first_loss(capsys) == pytest.approx(math.log(2), rel=1e-4)


def test_guards_stop_a_phase_and_leave_the_data(base: Path, tmp_path: Path) -> None:
    rows = preferences(base, 8)
    for settings, says in (
        ({"learning_rate": 1e38, "warmup": 0.0}, "became .*; lower the learning rate"),
        (
            {"learning_rate": 0.1, "guards": {"max_kl": 1e-3, "patience": 1, "min_entropy": None}},
            "left its reference",
        ),
        (
            {"learning_rate": 0.1, "epochs": 10,
             "guards": {"max_kl": None, "patience": 1, "min_entropy": 0.98}},
            "entropy collapsed",
        ),
    ):  # fmt: skip
        given = job(base, tmp_path, "dpo", rows, settings=settings)
        before = Path(given.dataset).read_bytes()
        with pytest.raises(TrainingError, match=says):
            run(given)
        assert not Path(given.out).exists()
        assert Path(given.dataset).read_bytes() == before


def test_wrong_settings_and_rows_are_named(base: Path, tmp_path: Path) -> None:
    rows = preferences(base, 2)
    with pytest.raises(UsageError, match="did you mean `beta`"):
        run(job(base, tmp_path, "dpo", rows, settings={"beat": 1}))
    with pytest.raises(UsageError, match="has one row"):
        run(job(base, tmp_path, "dpo", rows[:1]))
    with pytest.raises(UsageError, match="raise `max_length`"):
        run(job(base, tmp_path, "dpo", rows, settings={"max_length": 5}))


# --- our pass through the model against TRL's own ---------------------------------------------


def trainer_of(base: Path, tmp_path: Path, method: str, **settings: Any) -> Any:
    """The real trainer before its first step, its adapter moved away from nothing."""
    import torch

    from agentloop.training import fit, preference

    made: list[Any] = []

    def stop(trainer: Any, watch: Any) -> dict[str, float]:
        made.append(trainer)
        raise TrainingError("stopped before the first step")

    rows = preferences(base, 5)
    given = job(base, tmp_path, method, rows, settings={"batch_size": 10} | settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "fit", stop)
        with pytest.raises(TrainingError, match="stopped"):
            getattr(preference, method)(given)
    torch.manual_seed(1)
    for name, weight in made[0].model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return made[0]


def gradients(trainer: Any, *, whole: bool = False) -> tuple[float, dict[str, Any]]:
    batch = trainer.data_collator([trainer.train_dataset[at] for at in range(5)])
    trainer.model.zero_grad()
    if whole:
        del batch["lengths"]
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
    else:
        loss = trainer.training_step(trainer.model, batch)
    return float(loss.detach()), {
        name: weight.grad.clone()
        for name, weight in trainer.model.named_parameters()
        if weight.requires_grad
    }


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_loss_gradient_and_reference_are_those_of_trl(
    base: Path, tmp_path: Path, method: str
) -> None:
    import torch
    from trl.trainer.utils import add_fused_lm_head

    trainer = trainer_of(base, tmp_path, method)
    loss, ours = gradients(trainer)
    parts = trainer_of(base, tmp_path, method, tokens_at_once=60)
    parts_loss, in_parts = gradients(parts)
    outputs = ("log_probs", "entropy", "mean_logits", "is_top1")
    add_fused_lm_head(trainer.model.get_base_model(), outputs=outputs)
    theirs_loss, theirs = gradients(trainer, whole=True)
    assert loss == pytest.approx(theirs_loss, rel=1e-5) == parts_loss
    for name, gradient in theirs.items():
        assert float(gradient.abs().max()) > 0
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(in_parts[name], gradient, rtol=1e-3, atol=1e-6)
    # And the log-probs of the reference, cached before the adapter moved, are the base model's.
    batch = trainer.data_collator([trainer.train_dataset[at] for at in range(5)])
    lengths = batch.pop("lengths")
    assert len(lengths) == 5
    again = trainer.compute_ref_log_probs(trainer.model, batch)
    for column, values in zip(trainer.columns, again, strict=True):
        torch.testing.assert_close(batch[column], values, rtol=1e-4, atol=1e-4)


def test_a_flipped_preference_flips_the_gradient(base: Path, tmp_path: Path) -> None:
    """The comparison above must be able to fail."""
    trainer = trainer_of(base, tmp_path, "dpo")
    _, ours = gradients(trainer)
    swapped = {"good_ids": "bad_ids", "good_labels": "bad_labels", "bad_ids": "good_ids",
               "bad_labels": "good_labels", "ref_chosen_logps": "ref_rejected_logps",
               "ref_rejected_logps": "ref_chosen_logps"}  # fmt: skip
    trainer.train_dataset = trainer.train_dataset.rename_columns(swapped)
    _, flipped = gradients(trainer)
    name, gradient = max(ours.items(), key=lambda item: float(item[1].abs().max()))
    assert float((gradient * flipped[name]).sum()) < 0


def test_frozen_weights_in_low_precision_change_no_bit(base: Path, tmp_path: Path) -> None:
    """Autocast rounds the weights of a product each time; rounded once, the product is the same."""
    import torch
    from peft import get_peft_model

    from agentloop.training import fit
    from agentloop.training.preference_settings import DPOSettings

    found = []
    for precision in ("float32", "bfloat16"):
        given = job(base, tmp_path, "dpo", preferences(base, 1), settings={"precision": precision})
        config = fit.lora(given, DPOSettings())
        model = get_peft_model(fit.start_model(given), config)
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                assert weight.dtype == torch.float32
                weight.data = torch.randn_like(weight) * 0.1
        kinds = {weight.dtype for weight in model.parameters()}
        assert kinds == {torch.float32, torch.bfloat16} if precision == "bfloat16" else True
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(torch.arange(3, 40)[None]).logits
        logits.float().square().mean().backward()
        grads = [one.grad for one in model.parameters() if one.grad is not None]
        found.append((logits.detach(), *grads))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_all_weights_go_on_from_an_adapter(base: Path, tmp_path: Path) -> None:
    """What the adapter says is the start, and the reference, of a phase that learns everything."""
    rows = preferences(base, 4)
    first = run(job(base, tmp_path, "dpo", rows))
    given = job(
        base, tmp_path, "dpo", rows, out="full", adapter=first.adapter,
        settings={"weights": "full", "learning_rate": 1e-3, "max_steps": 2},
    )  # fmt: skip
    result = run(given)
    assert (Path(result.adapter) / "model.safetensors").is_file()
    assert result.metrics["first_loss"] == pytest.approx(math.log(2), rel=1e-3)
