"""Policy learning on frozen rows: TRL's GRPO trainer where what was sampled is read, not generated.

In: a job whose rows hold exact ids, the log-probs they were sampled with, and credit. Out: an
adapter (or full weights), written whole, and metrics. The decision worth knowing: TRL takes what it
is given for on-policy on its own path (the ratio is 1 whatever the rows' age), so the ratio here is
always to the *stored* log-probs, at the temperature of the sampling. What a group begins with is
computed once, the vocabulary projection runs at sampled positions only, and a step is computed in
parts that fit `tokens_at_once` with the gradient of the whole. Imports torch: loaded by the worker
process alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache
from trl import GRPOConfig, GRPOTrainer

from agentloop.errors import TrainingError, UsageError
from agentloop.records import TrainingJob, TrainingResult
from agentloop.training import fit
from agentloop.training.anchors import Anchor
from agentloop.training.artifact import CONFIG, publish
from agentloop.training.projection import Projection
from agentloop.training.replay_rows import Part, Sample, parts, sample, steps, temperature_of
from agentloop.training.replay_settings import ReplaySettings
from agentloop.training.replay_tensors import (
    Means,
    Tokens,
    fined,
    held,
    part_loss,
    silenced,
    tensors,
)
from agentloop.training.settings import settings_of
from agentloop.trajectories.rows_file import read_rows

FIGURES = (
    "loss", "grad_norm", "learning_rate", "ratio", "abs_log_ratio", "clip_share", "kl", "entropy",
    "stale_share",
)  # fmt: skip
"""What each step reports; `kl` is from the anchor, or without one from what sampled the rows. That
log-probs, temperature or tokens do not fit each other shows in `abs_log_ratio` at the first step:
the mean of `ratio` is near 1 over anything that was sampled."""


def train(job: TrainingJob) -> TrainingResult:
    """Learn from `job.dataset`, starting from `job.base` or what `job.adapter` holds of it.

    Raises `UsageError` on wrong settings or rows, `TrainingError` when a guard trips; then nothing
    is written.
    """
    return learn(job, settings_of(ReplaySettings, job.settings), ReplayTrainer)


def learn(
    job: TrainingJob, settings: ReplaySettings, make: Callable[..., ReplayTrainer]
) -> TrainingResult:
    """`train` with the trainer that `make` gives."""
    _check(job, settings)
    started = time.perf_counter()
    torch.manual_seed(job.seed)
    rows = read_rows(Path(job.dataset))
    temperature = temperature_of(rows, settings)
    found = [sample(row, settings) for row in rows]
    kept = [each for each in found if len(each.ids) <= settings.max_length]
    if not kept:
        raise UsageError(f"no row has at most {settings.max_length} tokens; raise `max_length`")
    with TemporaryDirectory(prefix="agentloop-replay-") as scratch:
        trainer = make(
            kept,
            settings,
            model=fit.start_model(job),
            args=arguments(job, settings, scratch, temperature),
            processing_class=fit.tokenizer_of(job.base),
            peft_config=fit.lora(job, settings),
        )
        metrics = fit.fit(trainer, fit.Watch(settings.guards, _figures))
    return publish(
        job,
        lambda directory: fit.save(trainer.model, directory),
        metrics=metrics
        | {f"{name}_at_start": value for name, value in trainer.first.items()}
        | {"rows": float(len(kept)), "rows_too_long": float(len(found) - len(kept))},
        seconds=time.perf_counter() - started,
    )


def arguments(
    job: TrainingJob, settings: ReplaySettings, scratch: str, temperature: float
) -> GRPOConfig:
    """TRL's arguments; batches are ours, so those of its generation are the least allowed."""
    return fit.arguments(
        GRPOConfig, job, settings.model_copy(update={"batch_size": 2}), scratch,
        num_generations=2, temperature=temperature, beta=0.0, disable_dropout=True,
        lr_scheduler_type=settings.schedule, weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
    )  # fmt: skip


def _check(job: TrainingJob, settings: ReplaySettings) -> None:
    if job.adapter is None or not held(settings) or settings.anchor.to != "base":
        return
    # Only below an adapter that stays one is the base still there.
    if settings.weights == "full" or not (Path(job.adapter) / CONFIG).is_file():
        raise UsageError(
            "a policy of full weights that learned before cannot be held to the base, which is "
            "not loaded; use `anchor.to: start`, or learn with `weights: lora`"
        )


def _figures(logs: Mapping[str, float]) -> dict[str, float]:
    return {name: float(logs[name]) for name in FIGURES if logs.get(name) is not None}


class ReplayTrainer(GRPOTrainer):  # type: ignore[misc]
    """Trains on `samples`; `tokens` counts what the rows seen so far hold, `first` keeps the
    statistics of the first step, before anything was learned."""

    def __init__(self, samples: Sequence[Sample], settings: ReplaySettings, **given: Any) -> None:
        self.samples, self.settings = list(samples), settings
        self.tokens = 0
        self.first: dict[str, float] = {}
        self._anchor: Anchor | None = None
        self._refs: list[Tensor] = []
        placeholder = Dataset.from_dict({"prompt": [""] * len(self.samples)})
        super().__init__(train_dataset=placeholder, reward_funcs=_credited, **given)
        adapted = isinstance(self.model, PeftModel)
        self._base = self.model.get_base_model() if adapted else self.model
        gpu = self.accelerator.device.type == "cuda"
        self._project = Projection(self._base, self.temperature, tiled=gpu)

    def get_train_dataloader(self) -> Any:
        """Batches of row indices; the rows themselves are few enough to stay in memory."""
        order = _Steps(self.samples, self.settings.batch_size, self.args.seed)
        return torch.utils.data.DataLoader(
            range(len(self.samples)),
            batch_sampler=order,
            collate_fn=list,  # type: ignore[arg-type]
        )

    def training_step(
        self, model: Any, inputs: list[int], num_items_in_batch: Any = None
    ) -> Tensor:
        """Gradient of one step, computed in parts."""
        model.train()
        samples = [self.samples[at] for at in inputs]
        plan = parts(samples, fit.at_once(self.settings), self.settings.share_prefix)
        tokens = self._tensors(samples)
        tokens = self._anchored(tokens, inputs, samples, plan)
        tokens = self._silenced(tokens, samples, plan)
        self.tokens += sum(len(each.ids) for each in samples)
        losses, stats, whole = [], Means(), tokens.mask.sum()
        for part in plan:
            logp, entropy = self._score(tokens, samples, part)
            view = tokens.part(part.rows, part.shared + 1, part.shared + 1 + logp.shape[1])
            loss = part_loss(logp, entropy, view, settings=self.settings, whole=whole, stats=stats)
            self.accelerator.backward(loss)
            losses.append(loss.detach())
        self._record(stats.means())
        return torch.stack(losses).sum()

    def _tensors(self, samples: Sequence[Sample]) -> Tokens:
        dtype = torch.float64 if self.model.dtype == torch.float64 else torch.float32
        return tensors(samples, self.settings, dtype, self.accelerator.device)

    def _score(
        self, tokens: Tokens, samples: Sequence[Sample], part: Part
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the tokens after `part.shared` + 1, 0 where unsampled:
        (rows x rest). The gradient of a beginning is the sum over the rows that share it."""
        end = max(len(samples[at].ids) for at in part.rows)
        view = tokens.part(part.rows, part.shared, end)
        where = view.mask[:, 1:]  # position t predicts token t + 1; padding is never read
        cache = None
        with self.accelerator.autocast():
            if part.shared:
                cache = DynamicCache(config=self._base.config)
                heads = tokens.ids[list(part.heads), : part.shared]
                self._base.base_model(input_ids=heads, past_key_values=cache, use_cache=True)
                _spread(cache, torch.tensor(part.head_of, device=heads.device))
            given = {"input_ids": view.ids[:, :-1], "past_key_values": cache}
            logp, entropy = self._project(
                given | {"use_cache": cache is not None}, where, view.ids[:, 1:][where],
                bonus=self.settings.entropy > 0,
            )  # fmt: skip
        empty = view.old[:, 1:].new_zeros(where.shape)
        return (
            empty.masked_scatter(where, logp.to(empty.dtype)),
            empty.masked_scatter(where, entropy.to(empty.dtype)),
        )

    def _look(self, tokens: Tokens, samples: Sequence[Sample], plan: Sequence[Part]) -> Tensor:
        """Log-probs of a whole step, (rows x time), without a gradient."""
        found = torch.zeros_like(tokens.old)
        for part in plan:
            with torch.no_grad():
                logp, _ = self._score(tokens, samples, part)
            start = part.shared + 1
            found[list(part.rows), start : start + logp.shape[1]] = logp
        return found

    def _anchored(
        self,
        tokens: Tokens,
        inputs: Sequence[int],
        samples: Sequence[Sample],
        plan: Sequence[Part],
    ) -> Tokens:
        """With the reference's log-probs: of an average at each step, of what stays once."""
        if not held(self.settings):
            return tokens
        ref = torch.zeros_like(tokens.old)
        if self.settings.anchor.to == "ema":
            if self._anchor is None:
                self._anchor = self._average()
            else:
                self._anchor.follow()
            with self._anchor.in_place():
                ref = self._look(tokens, samples, plan)
        else:
            self._refs = self._refs or self._fixed()
            for row, at in enumerate(inputs):
                ref[row, : len(self._refs[at])] = self._refs[at].to(ref.device)
        tokens = tokens.replaced(ref=ref)
        if self.settings.anchor.estimator == "centred":
            tokens = fined(self._look(tokens, samples, plan), tokens, self.settings.anchor.weight)
        return tokens

    def _average(self) -> Anchor:
        """What the policy is held to at the first step, when that is to be its moving average."""
        return Anchor(self.model, self.settings.anchor.keep)

    def _fixed(self) -> list[Tensor]:
        """The reference's log-probs of all rows, before the first update."""
        base = self.settings.anchor.to == "base" and isinstance(self.model, PeftModel)
        found: list[Tensor] = [torch.empty(0)] * len(self.samples)
        with self.model.disable_adapter() if base else nullcontext():
            for step in steps(self.samples, self.settings.batch_size, 0):
                samples = [self.samples[at] for at in step]
                plan = parts(samples, fit.at_once(self.settings), self.settings.share_prefix)
                looked = self._look(self._tensors(samples), samples, plan).cpu()
                for row, at in enumerate(step):
                    found[at] = looked[row, : len(self.samples[at].ids)]
        return found

    def _silenced(self, tokens: Tokens, samples: Sequence[Sample], plan: Sequence[Part]) -> Tokens:
        if self.settings.covariance is None:
            return tokens
        seed = self.args.seed + self.state.global_step
        return silenced(self._look(tokens, samples, plan), tokens, self.settings, seed)

    def _record(self, stats: Mapping[str, float]) -> None:
        """Log a step's statistics, and stop when the policy is too far from what sampled."""
        self.first = self.first or dict(stats)
        for name, value in stats.items():
            self._metrics["train"][name].append(value)
        limit = self.settings.stop_at
        if limit is not None and stats["abs_log_ratio"] > limit:
            self.control.should_training_stop = True


def _spread(cache: DynamicCache, rows: Tensor) -> None:
    """Give each row its head's keys and values. The cache's own method indexes, and the gradient of
    that is found one element after the other: 40 times slower on a CPU."""
    for layer in cache.layers:
        layer.keys = layer.keys.index_select(0, rows)
        layer.values = layer.values.index_select(0, rows)


def _credited(**_: Any) -> list[float]:
    """TRL wants a reward to generate for; rows that are replayed have their credit."""
    raise TrainingError("stored rows are not scored again")


class _Steps(torch.utils.data.Sampler[list[int]]):
    """The rows of each step; groups in a new order in each epoch."""

    def __init__(self, samples: Sequence[Sample], batch_size: int, seed: int) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed

    def __len__(self) -> int:
        return len(steps(self.samples, self.batch_size, self.seed))

    def __iter__(self) -> Iterator[list[int]]:
        self.seed += 1
        return iter(steps(self.samples, self.batch_size, self.seed))
