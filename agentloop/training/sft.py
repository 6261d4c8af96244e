"""Rejection-sampling fine-tuning: a LoRA adapter (or full weights) from chosen rows, with TRL's
`SFTTrainer`.

In: a job whose rows are exact token ids. Out: the adapter, written whole, and metrics. Nothing is
re-tokenised but the bare prompt. Imports torch: loaded by the worker process alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig

from agentloop.records import TrainingJob, TrainingResult
from agentloop.training import fit
from agentloop.training.artifact import publish
from agentloop.training.examples import Example, example, fitting
from agentloop.training.rows_trainer import RowsTrainer, collate
from agentloop.training.settings import SFTSettings, sft_settings
from agentloop.trajectories.rows_file import read_rows


def train(job: TrainingJob) -> TrainingResult:
    """Fine-tune `job.base` (from `job.adapter` when given) on `job.dataset` into `job.out`.

    Raises `UsageError` on wrong settings or rows, `TrainingError` when a loss or a weight is not
    finite; then nothing is written.
    """
    settings = sft_settings(job.settings)
    started = time.perf_counter()
    torch.manual_seed(job.seed)
    tokenizer = fit.tokenizer_of(job.base)
    rows = read_rows(Path(job.dataset))
    render = fit.renderer(tokenizer)
    examples = fitting((example(row, render) for row in rows), settings.max_length)
    with TemporaryDirectory(prefix="agentloop-sft-") as scratch:
        trainer = make_trainer(job, settings, examples, tokenizer, scratch)
        metrics = fit.fit(trainer, fit.Watch(settings.guards))
    counts = {"rows": len(examples), "rows_too_long": len(rows) - len(examples)}
    return publish(
        job,
        lambda directory: fit.save(trainer.model, directory),
        metrics=metrics | {name: float(count) for name, count in counts.items()},
        seconds=time.perf_counter() - started,
    )


def make_trainer(
    job: TrainingJob, settings: SFTSettings, examples: Sequence[Example], tokenizer: Any,
    scratch: str,
) -> RowsTrainer:  # fmt: skip
    """TRL's trainer on our rows; `scratch` is a directory that it may write to."""
    trainer = RowsTrainer(
        model=fit.start_model(job),
        args=fit.arguments(
            SFTConfig, job, settings, scratch,
            dataset_kwargs={"skip_prepare_dataset": True}, max_length=None,
        ),
        train_dataset=Dataset.from_list(
            [
                {"input_ids": each.input_ids, "labels": each.labels, "weight": each.weight}
                for each in examples
            ]
        ),
        data_collator=lambda batch: collate(batch, tokenizer.pad_token_id or 0),
        processing_class=tokenizer,
        peft_config=fit.lora(job, settings),
    )  # fmt: skip
    trainer.share_prefix = settings.share_prefix
    trainer.tokens_at_once = fit.at_once(settings)
    return trainer
