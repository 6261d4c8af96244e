"""What every TRL method of ours does alike: load, run under guards, save.

In: a job and its settings. Out: a model to train, the arguments of TRL's trainers, the metrics of
a run, and a directory's files. The decision worth knowing: a phase starts from what the job names
(a base, an adapter of it, or another model's full weights), so that versions form one line.
Imports torch: loaded by worker processes alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from agentloop.errors import TrainingError, UsageError
from agentloop.records import Message, TrainingJob
from agentloop.training.artifact import CONFIG, FULL_CONFIG, peak_rss, report
from agentloop.training.guards import Guards, GuardSettings
from agentloop.training.settings import SFTSettings
from agentloop.trajectories import codec
from agentloop.trajectories.chat_format import render

A = TypeVar("A", bound=TrainingArguments)
Render = Callable[[tuple[Message, ...]], Sequence[int]]


def renderer(tokenizer: Any) -> Render:
    """What turns the messages of a row's prompt into ids; sampled text is never re-tokenised."""

    def ids(messages: tuple[Message, ...]) -> list[int]:
        return render(tokenizer, [codec.to_json(message) for message in messages])

    return ids


def tokenizer_of(base: str) -> Any:
    """The base model's tokenizer. Raises `UsageError` when `base` is no model directory."""
    if not (Path(base) / FULL_CONFIG).is_file():
        raise UsageError(f"the base model `{base}` is no model directory; it has no {FULL_CONFIG}")
    return AutoTokenizer.from_pretrained(base, local_files_only=True)


def start_model(job: TrainingJob, kind: Any = AutoModelForCausalLM, **given: Any) -> Any:
    """The model of `job.base`, or what `job.adapter` holds of it: an adapter or full weights.

    Weights that are learned are float32. Below an adapter, those that only ever enter products are
    kept in the precision of the products, which is what autocast would round them to each time; on
    a GPU all of them stay as they are stored.
    """
    settings, gpu = job.settings, torch.cuda.is_available()
    full = settings.get("weights", "lora") == "full"
    model = load(job, kind, "auto" if gpu and not full else torch.float32, **given)
    if full and isinstance(model, PeftModel):
        return model.merge_and_unload().requires_grad_(True)
    chosen = SFTSettings.model_validate({"precision": settings.get("precision", "auto")})
    if not full and bfloat16(chosen, gpu):
        bare = model.get_base_model() if isinstance(model, PeftModel) else model
        for name, module in bare.base_model.named_modules():  # neither a head nor an adapter
            if isinstance(module, torch.nn.Linear) and "lora_" not in name:
                module.weight.data = module.weight.data.to(torch.bfloat16)
        for weight in model.parameters():  # what still lies in the file would keep all of it mapped
            if weight.dtype != torch.bfloat16:
                weight.data = weight.data.clone()
    return model


def load(job: TrainingJob, kind: Any, dtype: Any, **given: Any) -> Any:
    """The same as it is stored, in `dtype`; an adapter is ready to be trained on."""
    start = Path(job.adapter) if job.adapter else None
    whole = start is not None and not (start / CONFIG).is_file()
    model = kind.from_pretrained(
        str(start) if whole else job.base,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        **given,
    )
    if start is None or whole:
        return model
    return PeftModel.from_pretrained(model, str(start), is_trainable=True)


def lora(job: TrainingJob, settings: SFTSettings, task: str = "CAUSAL_LM") -> LoraConfig | None:
    """The adapter to add, `None` when there is one already or all weights are learned."""
    if settings.weights == "full" or (job.adapter and (Path(job.adapter) / CONFIG).is_file()):
        return None  # (all weights include an adapter's, which `start_model` merged)
    named = settings.target_modules
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        target_modules=list(named) if isinstance(named, tuple) else named,
        task_type=task,
    )


def arguments(
    kind: type[A], job: TrainingJob, settings: SFTSettings, scratch: str, **more: Any
) -> A:
    """Arguments of a TRL trainer: one step per `batch_size`, every step logged, nothing kept."""
    gpu = torch.cuda.is_available()
    made: A = kind(
        output_dir=scratch,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,
        seed=job.seed,
        use_cpu=not gpu,
        bf16=bfloat16(settings, gpu),
        gradient_checkpointing=False,
        remove_unused_columns=False,
        dataloader_pin_memory=gpu,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not finite is to be seen
        disable_tqdm=True,
        **more,
    )
    return made


def bfloat16(settings: SFTSettings, gpu: bool) -> bool:
    """Whether products run in bfloat16 (learned weights stay float32): where it is native.
    Emulated, as on older CPUs, it is slower than float32."""
    if settings.precision != "auto":
        return settings.precision == "bfloat16"
    if gpu:
        return bool(torch.cuda.is_bf16_supported())
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def at_once(settings: SFTSettings) -> int:
    """Tokens that are computed together."""
    return settings.tokens_at_once or (16384 if torch.cuda.is_available() else 384)


Figures = Callable[[Mapping[str, float]], Mapping[str, float]]


@dataclass
class Watch(TrainerCallback):  # type: ignore[misc]
    """Hands each step's figures to the guards and to the parent process."""

    settings: GuardSettings
    figures: Figures = dict
    """Makes the guards' figures (`kl` in nats per token…) of what TRL logs."""
    losses: list[float] = field(default_factory=list)
    last: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.guards, self.started = Guards(self.settings), time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """One line per optimizer step; raises `TrainingError` when a guard trips."""
        if not logs or "loss" not in logs:
            return
        figures = {name: float(value) for name, value in self.figures(logs).items()}
        self.guards.planned = state.max_steps
        self.guards.watch(state.global_step, figures)
        self.losses.append(figures["loss"])
        self.last = figures
        shown = {name: round(value, 5) for name, value in figures.items() if name != "epoch"}
        seconds = round(time.perf_counter() - self.started, 3)
        report(step=state.global_step, steps=state.max_steps, **shown, seconds=seconds)


def fit(trainer: Any, watch: Watch) -> dict[str, float]:
    """Train under the guards; metrics of the run. `trainer.tokens` counts what it was given.

    Raises `TrainingError` when a guard trips, no step was made or a weight is not finite.
    """
    trainer.remove_callback(PrinterCallback)  # `watch` reports each step
    trainer.add_callback(watch)
    began, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    spent, cpu = time.perf_counter() - began, time.process_time() - cpu
    if not watch.losses:
        raise TrainingError("the trainer made no step")
    check_finite(trainer.model)
    end = max(1, len(watch.losses) // 10)
    return {
        "first_loss": sum(watch.losses[:end]) / end,
        "last_loss": sum(watch.losses[-end:]) / end,
        **{f"last_{name}": watch.last[name] for name in ("kl", "entropy") if name in watch.last},
        "tokens": float(trainer.tokens),
        "tokens_per_second": trainer.tokens / spent,
        "steps": float(trainer.state.global_step),
        "train_seconds": spent,
        "cpu_seconds": cpu,
        "peak_rss_bytes": peak_rss(),
    }


def check_finite(model: torch.nn.Module) -> None:
    """Raise `TrainingError` when a learned weight is not finite."""
    for name, weight in model.named_parameters():
        if weight.requires_grad and not bool(torch.isfinite(weight).all()):
            raise TrainingError(
                f"the trained weight `{name}` is not finite; lower the learning rate"
            )


def save(model: Any, directory: Path) -> None:
    """An adapter, or the full weights in one file; nothing else."""
    if isinstance(model, PeftModel):
        model.save_pretrained(directory, safe_serialization=True, selected_adapters=["default"])
        (directory / "README.md").unlink(missing_ok=True)  # peft's model card template
    else:
        model.save_pretrained(directory, max_shard_size="1000GB")
        (directory / "generation_config.json").unlink(missing_ok=True)  # the base model's is used
