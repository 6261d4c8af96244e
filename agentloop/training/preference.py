"""Preference learning on stored rows: TRL's DPO and KTO losses, our tokens, our forward pass.

In: a job whose rows carry `label`, and for DPO `pair`. Out: an adapter (or full weights), written
whole. The reference is the policy that the job starts from; its log-probs are computed once,
before the first step. The decision worth knowing: TRL keeps the losses and the metrics, while the
tokens, the batches and the pass through the model are ours, so nothing sampled is tokenised again
and the prompt of a pair is computed once. Imports torch: loaded by the worker process alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from agentloop.records import TrainingJob, TrainingResult
from agentloop.training import fit
from agentloop.training.artifact import publish
from agentloop.training.examples import example
from agentloop.training.logprobs import project_labelled_only
from agentloop.training.preference_rows import (
    Batch,
    collate_pairs,
    collate_singles,
    labelled,
    mean_length,
    pairs,
    refuse_empty,
    singles,
)
from agentloop.training.preference_settings import DPOSettings, KTOSettings, TunedSettings
from agentloop.training.rows_trainer import Bucketed
from agentloop.training.settings import settings_of
from agentloop.trajectories.rows_file import read_rows


def dpo(job: TrainingJob) -> TrainingResult:
    """Learn to prefer the row of each `pair` that is labelled true.

    Raises `UsageError` on wrong settings or rows, `TrainingError` when a guard trips; then nothing
    is written.
    """
    settings = settings_of(DPOSettings, job.settings)
    started = time.perf_counter()
    tokenizer = fit.tokenizer_of(job.base)
    found = pairs(read_rows(Path(job.dataset)), fit.renderer(tokenizer))
    kept = [each for each in found if each.length <= settings.max_length]
    refuse_empty(kept, settings.max_length)

    def make(scratch: str) -> PairTrainer:
        return PairTrainer(
            model=fit.start_model(job),
            args=fit.arguments(
                DPOConfig, job, settings, scratch, beta=settings.beta, loss_type=[settings.loss],
                precompute_ref_log_probs=True,
            ),
            train_dataset=Dataset.from_list([each.columns() for each in kept]),
            data_collator=lambda batch: collate_pairs(batch, tokenizer.pad_token_id or 0),
            processing_class=tokenizer,
            peft_config=fit.lora(job, settings),
            at_once=fit.at_once(settings),
            pairs=settings.share_prefix,
        )  # fmt: skip

    mean = mean_length([label for each in kept for label in (each.good, each.bad)])

    def figures(logs: Mapping[str, float]) -> dict[str, float]:
        # How much less likely the preferred rows became: they were sampled, so this estimates the
        # divergence from the reference, and it is what goes wrong when the loss still falls.
        fallen = -float(logs["rewards/chosen"]) / settings.beta / mean
        return _figures(logs) | {"kl": max(0.0, fallen)}

    return _run(
        job, settings, make, figures,
        counts={"pairs": len(kept), "pairs_too_long": len(found) - len(kept)}, started=started,
    )  # fmt: skip


def kto(job: TrainingJob) -> TrainingResult:
    """Learn from rows labelled good or bad one by one; errors as in `dpo`."""
    settings = settings_of(KTOSettings, job.settings)
    started = time.perf_counter()
    tokenizer = fit.tokenizer_of(job.base)
    render = fit.renderer(tokenizer)
    found = [(example(row, render), labelled(row)) for row in read_rows(Path(job.dataset))]
    kept = [each for each in found if len(each[0].input_ids) <= settings.max_length]
    refuse_empty(kept[1:], settings.max_length)

    def make(scratch: str) -> SingleTrainer:
        return SingleTrainer(
            model=fit.start_model(job),
            args=fit.arguments(
                KTOConfig, job, settings, scratch, beta=settings.beta,
                desirable_weight=settings.desirable_weight,
                undesirable_weight=settings.undesirable_weight, precompute_ref_log_probs=True,
            ),
            train_dataset=Dataset.from_list(singles(kept)),
            data_collator=lambda batch: collate_singles(batch, tokenizer.pad_token_id or 0),
            processing_class=tokenizer,
            peft_config=fit.lora(job, settings),
            at_once=fit.at_once(settings),
        )  # fmt: skip

    sides = {
        name: [each for each, good in kept if good == label]
        for name, label in (("chosen", True), ("rejected", False))
    }
    lengths = {name: mean_length(rows) for name, rows in sides.items() if rows}

    def figures(logs: Mapping[str, float]) -> dict[str, float]:
        # The method's own `kl` is of answers to other prompts, which stay as unlikely as they were.
        # Good and bad rows were all sampled: exp(d) - 1 - d of how much likelier they became is,
        # averaged, the divergence from the reference, and from the sides' means a bound below it.
        gaps = {
            name: float(logs[f"rewards/{name}"]) / settings.beta / length
            for name, length in lengths.items()
            if f"rewards/{name}" in logs
        }
        apart = sum(len(sides[name]) * (math.exp(d) - 1 - d) for name, d in gaps.items())
        return _figures(logs) | {"kl": apart / sum(len(sides[name]) for name in gaps)}

    return _run(
        job, settings, make, figures,
        counts={"rows": len(kept), "rows_too_long": len(found) - len(kept)}, started=started,
    )  # fmt: skip


def _run(
    job: TrainingJob,
    settings: TunedSettings,
    make: Callable[[str], Any],
    figures: fit.Figures,
    *,
    counts: Mapping[str, float],
    started: float,
) -> TrainingResult:
    """Make the trainer, run it under guards, publish."""
    torch.manual_seed(job.seed)
    with TemporaryDirectory(prefix="agentloop-preference-") as scratch:
        trainer = make(scratch)
        metrics = fit.fit(trainer, fit.Watch(settings.guards, figures))
    return publish(
        job,
        lambda directory: fit.save(trainer.model, directory),
        metrics=metrics | dict(counts) | trainer.reference,
        seconds=time.perf_counter() - started,
    )


def _figures(logs: Mapping[str, float]) -> dict[str, float]:
    """What both methods log, under names without a slash."""
    names = {"loss": "loss", "grad_norm": "grad_norm", "entropy": "entropy",
             "rewards/margins": "margin"}  # fmt: skip
    return {ours: float(logs[theirs]) for theirs, ours in names.items() if theirs in logs}


class _OwnRows:
    """Before TRL's trainers in the order of resolution: rows as they are, batches of like length,
    computed in parts that fit `at_once`; `tokens` counts what the rows seen so far hold."""

    columns: tuple[str, str]

    def __init__(self, *, at_once: int, pairs: bool = False, **given: Any) -> None:
        self.at_once, self.pairs, self.tokens = at_once, pairs, 0
        super().__init__(**given)

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # they are tokens already

    def _get_train_sampler(self: Any, train_dataset: Any = None) -> Any:
        lengths = list(self.train_dataset["length"])
        return Bucketed(lengths, self.args.per_device_train_batch_size, self.args.seed)

    def _precompute_ref_logps(self: Any, dataset: Any, name: str, batch_size: int) -> Any:
        """The reference's log-probs as columns, computed over rows of like length."""
        adapted = isinstance(self.model, PeftModel)
        base = self.model.get_base_model() if adapted else self.model
        project_labelled_only(base, pairs=self.pairs)
        began, cpu = time.perf_counter(), time.process_time()
        order = sorted(range(len(dataset)), key=list(dataset["length"]).__getitem__)
        found: dict[str, list[float]] = {key: [0.0] * len(order) for key in self.columns}
        for at in range(0, len(order), batch_size):
            indices = order[at : at + batch_size]
            batch = self._prepare_inputs(self.data_collator([dataset[one] for one in indices]))
            lengths = batch.pop("lengths")
            size = max(1, self.at_once // int(lengths.max()))
            for start in range(0, len(indices), size):
                part = _part(batch, len(indices), start, start + size)
                values = self.compute_ref_log_probs(self.model, part)
                for key, tensor in zip(self.columns, values, strict=True):
                    for one, value in zip(indices[start:], tensor.tolist(), strict=False):
                        found[key][one] = value
        for key, values in found.items():
            dataset = dataset.add_column(key, values)
        self.reference = {
            "reference_seconds": time.perf_counter() - began,
            "reference_cpu_seconds": time.process_time() - cpu,
        }
        return dataset

    def training_step(
        self: Any, model: Any, inputs: Batch, num_items_in_batch: Any = None
    ) -> Tensor:
        """Gradient of the mean loss of one batch, computed in parts."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        lengths = inputs.pop("lengths")
        n, size = len(lengths), max(1, self.at_once // int(lengths.max()))
        self.tokens += int(inputs["attention_mask"].sum())
        self._begin_batch(model, inputs, size)
        losses = []
        for start in range(0, n, size):
            part = _part(inputs, n, start, start + size)
            share = min(size, n - start) / n
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, part) * share
            self.accelerator.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _begin_batch(self, model: Any, inputs: Batch, size: int) -> None:
        """What a whole batch needs before its parts."""


def _part(batch: Batch, n: int, start: int, stop: int) -> Batch:
    """Units `start` to `stop` of a batch of `n`; a tensor holds one or two rows of each unit."""
    return {
        name: tensor.unflatten(0, (len(tensor) // n, n))[:, start:stop].flatten(0, 1)
        for name, tensor in batch.items()
    }


class PairTrainer(_OwnRows, DPOTrainer):  # type: ignore[misc]
    """`DPOTrainer` on `Pair.columns`."""

    columns = ("ref_chosen_logps", "ref_rejected_logps")


class SingleTrainer(_OwnRows, KTOTrainer):  # type: ignore[misc]
    """`KTOTrainer` on `singles`; its baseline is that of the whole batch, whatever its parts."""

    columns = ("ref_logps", "ref_KL_logps")
    _baseline: Tensor | None = None

    def _begin_batch(self, model: Any, inputs: Batch, size: int) -> None:
        n = len(inputs["label"])
        with self.compute_loss_context_manager():
            parts = [
                super(SingleTrainer, self)._compute_kl_logps(model, _part(inputs, n, at, at + size))
                for at in range(0, n, size)
            ]
        self._baseline = (torch.cat(parts) - inputs["ref_KL_logps"]).mean()

    def _compute_kl_logps(self, model: Any, batch: Batch) -> Tensor:
        assert self._baseline is not None
        return batch["ref_KL_logps"] + self._baseline
