"""Rejection-sampling fine-tuning: a LoRA adapter from chosen rows, with TRL's `SFTTrainer`.

In: a job whose rows are exact token ids. Out: the adapter, written whole, and metrics. Nothing is
re-tokenised but the bare prompt. Imports torch: loaded by the worker process alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig

from agentloop.errors import TrainingError
from agentloop.records import Message, TrainingJob, TrainingResult
from agentloop.training.artifact import peak_rss, publish, report
from agentloop.training.examples import Example, example, fitting
from agentloop.training.rows_trainer import RowsTrainer, collate
from agentloop.training.settings import SFTSettings, sft_settings
from agentloop.trajectories import codec
from agentloop.trajectories.chat_format import render
from agentloop.trajectories.rows_file import read_rows


def train(job: TrainingJob) -> TrainingResult:
    """Fine-tune `job.base` (from `job.adapter` when given) on `job.dataset` into `job.out`.

    Raises `UsageError` on wrong settings or rows, `TrainingError` when a loss or a weight is not
    finite; then nothing is written.
    """
    settings = sft_settings(job.settings)
    started = time.perf_counter()
    torch.manual_seed(job.seed)
    tokenizer = AutoTokenizer.from_pretrained(job.base, local_files_only=True)
    rows = read_rows(Path(job.dataset))
    examples = fitting((example(row, _renderer(tokenizer)) for row in rows), settings.max_length)
    with TemporaryDirectory(prefix="agentloop-sft-") as scratch:
        trainer = _trainer(job, settings, examples, tokenizer, scratch)
        losses = _Losses()
        trainer.add_callback(losses)
        begun, cpu = time.perf_counter(), time.process_time()
        trainer.train()
    spent, cpu = time.perf_counter() - begun, time.process_time() - cpu
    adapter = trainer.model
    _check_finite(adapter)
    metrics = losses.summary() | {
        "rows": float(len(examples)),
        "rows_too_long": float(len(rows) - len(examples)),
        "tokens": float(trainer.tokens),
        "tokens_per_second": trainer.tokens / spent,
        "steps": float(trainer.state.global_step),
        "train_seconds": spent,
        "cpu_seconds": cpu,
        "peak_rss_bytes": peak_rss(),
    }
    return publish(
        job,
        lambda directory: _save(adapter, directory),
        metrics=metrics,
        seconds=time.perf_counter() - started,
    )


class _Losses(TrainerCallback):  # type: ignore[misc]
    """Passes each step's loss on to the parent process and stops on one that is not finite."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.started = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """One line per optimizer step."""
        if not logs or "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} at step {state.global_step}; lower the learning rate"
            )
        self.seen.append(loss)
        report(
            step=state.global_step,
            steps=state.max_steps,
            loss=loss,
            seconds=round(time.perf_counter() - self.started, 3),
        )

    def summary(self) -> dict[str, float]:
        """Loss of the first and of the last step, and the mean of each tenth at the ends."""
        if not self.seen:
            raise TrainingError("the trainer made no step")
        end = max(1, len(self.seen) // 10)
        return {
            "first_loss": sum(self.seen[:end]) / end,
            "last_loss": sum(self.seen[-end:]) / end,
        }


def _renderer(tokenizer: Any) -> Any:
    def ids(messages: tuple[Message, ...]) -> list[int]:
        return render(tokenizer, [codec.to_json(message) for message in messages])

    return ids


def _trainer(
    job: TrainingJob,
    settings: SFTSettings,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    scratch: str,
) -> RowsTrainer:
    gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        job.base, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    if job.adapter:
        model = PeftModel.from_pretrained(model, job.adapter, is_trainable=True)
    lora = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        target_modules=_targets(settings),
        task_type="CAUSAL_LM",
    )
    arguments = SFTConfig(
        output_dir=scratch,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,
        seed=job.seed,
        use_cpu=not gpu,
        bf16=_bfloat16(settings, gpu),
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        remove_unused_columns=False,
        dataloader_pin_memory=gpu,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = RowsTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(
            [
                {"input_ids": each.input_ids, "labels": each.labels, "weight": each.weight}
                for each in examples
            ]
        ),
        data_collator=lambda batch: collate(batch, tokenizer.pad_token_id or 0),
        processing_class=tokenizer,
        peft_config=None if job.adapter else lora,
    )
    trainer.share_prefix = settings.share_prefix
    trainer.tokens_at_once = settings.tokens_at_once or (16384 if gpu else 384)
    return trainer


def _bfloat16(settings: SFTSettings, gpu: bool) -> bool:
    """Whether products run in bfloat16 (weights of the adapter stay float32): where it is native.
    Emulated, as on older CPUs, it is slower than float32."""
    if settings.precision != "auto":
        return settings.precision == "bfloat16"
    if gpu:
        return bool(torch.cuda.is_bf16_supported())
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _targets(settings: SFTSettings) -> str | list[str]:
    named = settings.target_modules
    return named if named == "all-linear" else [named] if isinstance(named, str) else list(named)


def _check_finite(model: torch.nn.Module) -> None:
    for name, weight in model.named_parameters():
        if weight.requires_grad and not bool(torch.isfinite(weight).all()):
            raise TrainingError(
                f"the trained weight `{name}` is not finite; lower the learning rate"
            )


def _save(model: Any, directory: Path) -> None:
    model.save_pretrained(directory, safe_serialization=True)
    (directory / "README.md").unlink(missing_ok=True)  # peft's model card template
