"""Real fine-tuning: a tiny random model through TRL in a process, and SmolLM2 when it is asked."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import chat_llama
import pytest
from chat_llama import tokenizer_of

from agentloop.datasets.manifest import freeze, rows_path
from agentloop.errors import TrainingError, UsageError
from agentloop.records import Message, Row, TrainingJob, TrainingResult
from agentloop.training.dry import DryTrainer
from agentloop.training.job import ProcessTrainer

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]

SYSTEM = "You answer in one word."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("trl")
    return chat_llama.make(tmp_path_factory.mktemp("base"), pad="<|endoftext|>")


def rows_of(tokenizer: Any, n: int) -> list[Row]:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    return [
        Row(
            episode=f"ep-{at}",
            prompt=(
                Message(role="system", content=SYSTEM),
                Message(role="user", content="Say it" + "!" * (at % 7)),
            ),
            segments=(
                ids("```python\nprint(1)\n```<|im_end|>"),
                ids(f"\n<|im_start|>user\n{at}<|im_end|>\n<|im_start|>assistant\n"),
                ids("Answer: yes<|im_end|>"),
            ),
            sampled=(True, False, True),
        )
        for at in range(n)
    ]


def job(base: Path, tmp_path: Path, rows: list[Row], **fields: Any) -> TrainingJob:
    dataset = freeze(rows, {}, tmp_path / "datasets")
    settings = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-2, "precision": "float32"}
    return TrainingJob(
        method="agentloop.training.sft:train",
        base=str(base),
        dataset=str(rows_path(tmp_path / "datasets", dataset)),
        out=str(tmp_path / fields.pop("out", "out")),
        settings=settings | fields.pop("settings", {}),
        **fields,
    )


def run(given: TrainingJob) -> TrainingResult:
    return asyncio.run(ProcessTrainer(deadline=300).train(given))


def test_the_loss_falls_and_training_goes_on_from_an_adapter(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    rows = rows_of(tokenizer_of(base), 18)
    result = run(job(base, tmp_path, rows))
    assert result.metrics["steps"] == 15
    assert result.metrics["last_loss"] < result.metrics["first_loss"] - 0.4
    names = {entry.name for entry in Path(result.adapter).iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "manifest.json", "result.json",
    }  # fmt: skip
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), result.adapter)
    assert model.peft_config["default"].r == 16
    assert json.loads(Path(result.adapter, "adapter_config.json").read_text())["lora_alpha"] == 32

    further = run(job(base, tmp_path, rows, out="further", adapter=result.adapter))
    assert (
        further.metrics["first_loss"]
        < (result.metrics["first_loss"] + result.metrics["last_loss"]) / 2
    )
    assert further.sha256 != result.sha256


def test_a_wrong_setting_and_a_diverging_run_are_typed(base: Path, tmp_path: Path) -> None:
    rows = rows_of(tokenizer_of(base), 4)
    with pytest.raises(UsageError, match="did you mean `learning_rate`"):
        run(job(base, tmp_path, rows, settings={"learning_rat": 1.0}))
    with pytest.raises(TrainingError, match="learning rate"):
        run(job(base, tmp_path, rows, settings={"learning_rate": 1e38, "warmup": 0.0}))
    assert not (tmp_path / "out").exists()


def _trainer(base: Path, tmp_path: Path, rows: list[Row]) -> tuple[Any, dict[str, Any]]:
    """The real trainer with a non-trivial adapter, and one padded batch of all rows."""
    import torch

    from agentloop.training import fit, sft
    from agentloop.training.examples import example
    from agentloop.training.settings import sft_settings

    tokenizer = tokenizer_of(base)
    examples = [example(row, fit.renderer(tokenizer)) for row in rows]
    given = job(base, tmp_path, rows)
    trainer = sft.make_trainer(
        given, sft_settings(given.settings), examples, tokenizer, str(tmp_path / "scratch")
    )
    torch.manual_seed(1)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    batch = trainer.data_collator([trainer.train_dataset[at] for at in range(len(rows))])
    return trainer, batch


def _gradients(trainer: Any, batch: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    grads = {
        name: weight.grad.clone()
        for name, weight in trainer.model.named_parameters()
        if weight.requires_grad
    }
    return float(loss.detach()), grads


def test_the_loss_is_that_of_the_sampled_tokens_alone(base: Path, tmp_path: Path) -> None:
    """Against a direct computation: full logits, row by row, no padding, no shared prompt."""
    import torch

    rows = rows_of(tokenizer_of(base), 3)
    trainer, batch = _trainer(base, tmp_path, rows)
    batch["weight"] = torch.tensor([1.0, 0.5, 2.0])
    loss, _ = _gradients(trainer, batch)
    total, weights = 0.0, 0.0
    for at, row in enumerate(rows):
        prompt = len(batch["labels"][at]) - int((batch["attention_mask"][at] == 0).sum())
        prompt -= sum(map(len, row.segments))
        ids = batch["input_ids"][at][: int(batch["attention_mask"][at].sum())]
        with torch.no_grad():
            logprobs = trainer.model(input_ids=ids[None]).logits[0].float().log_softmax(-1)
        place, weight = prompt, float(batch["weight"][at])
        for segment, sampled in zip(row.segments, row.sampled, strict=True):
            for token in segment:
                if sampled:
                    total -= weight * float(logprobs[place - 1, token])
                    weights += weight
                assert int(ids[place]) == token
                place += 1
    assert loss == pytest.approx(total / weights, rel=1e-4)


def test_a_shared_prompt_changes_neither_loss_nor_gradient(base: Path, tmp_path: Path) -> None:
    import torch

    from agentloop.training.rows_trainer import shared_prefix

    trainer, batch = _trainer(base, tmp_path, rows_of(tokenizer_of(base), 5))
    assert shared_prefix(batch["input_ids"], batch["labels"]) > len(SYSTEM)
    shared_loss, shared = _gradients(trainer, batch)
    trainer.share_prefix = False
    plain_loss, plain = _gradients(trainer, batch)
    assert shared_loss == pytest.approx(plain_loss, rel=1e-5)
    for name, gradient in plain.items():
        assert float(gradient.abs().max()) > 0
        torch.testing.assert_close(shared[name], gradient, rtol=1e-3, atol=1e-5)


def test_a_batch_in_parts_has_the_gradient_of_the_whole(base: Path, tmp_path: Path) -> None:
    import torch

    trainer, batch = _trainer(base, tmp_path, rows_of(tokenizer_of(base), 5))
    batch["weight"] = torch.tensor([1.0, 0.5, 2.0, 1.0, 3.0])
    whole_loss, whole = _gradients(trainer, batch)
    trainer.tokens_at_once = 2 * batch["input_ids"].shape[1]
    trainer.model.zero_grad()
    assert float(trainer.training_step(trainer.model, batch)) == pytest.approx(whole_loss, rel=1e-5)
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(weight.grad, whole[name], rtol=1e-3, atol=1e-5)


def test_a_shared_answer_is_not_taken_for_a_prompt() -> None:
    """Rows that are equal throughout: the first label must still be predicted."""
    import torch

    from agentloop.training.rows_trainer import shared_prefix

    ids = torch.arange(40).repeat(2, 1)
    labels = ids.clone()
    labels[:, :20] = -100
    assert shared_prefix(ids, labels) == 19
    assert shared_prefix(ids[:1], labels[:1]) == 0
    labels[1, 3] = 3
    assert shared_prefix(ids, labels) == 0


def test_the_dry_adapter_loads_and_changes_nothing(base: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    dry = asyncio.run(DryTrainer().train(job(base, tmp_path, rows_of(tokenizer_of(base), 2))))
    model = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.arange(5)[None]
    with torch.no_grad():
        before = model(ids).logits
        after = PeftModel.from_pretrained(model, dry.adapter)(ids).logits
    torch.testing.assert_close(before, after)


@pytest.mark.timeout(400)
def test_smollm2_learns_a_format(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from agentloop.serving.weights import prepare_smollm2

    smollm2 = prepare_smollm2(tmp_path / "smollm2")
    rows = rows_of(tokenizer_of(smollm2), 16)
    result = run(job(smollm2, tmp_path, rows, settings={"learning_rate": 1e-3, "epochs": 4}))
    assert result.metrics["last_loss"] < result.metrics["first_loss"] / 2
    assert result.metrics["tokens_per_second"] > 10
