"""TRL's own trainers on the data of a training benchmark, in the configurations that are tried.

In: the phase, rows, their order, and a variant. Out: a trainer to call `train` on. TRL is raw but
for what gives it the same work: it takes ids instead of text, and the rows of each step in the
order ours does, which are of like length, as its own sorting would make them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from agentloop.records import TrainingJob
from agentloop.training import fit
from agentloop.training.preference_settings import DPOSettings
from agentloop.training.replay_settings import ReplaySettings
from agentloop.training.settings import SFTSettings
from benchmarks.training_data import SEED, Answer, Load, Variant, advantage, pairs

GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class Work:
    """What is to be trained on what: `steps` are the rows of each."""

    phase: str
    model: str
    data: Sequence[Answer]
    steps: Sequence[Sequence[int]]
    load: Load


def trainer_of(work: Work, variant: Variant, scratch: str) -> Any:
    """A trainer for one pass over the rows of `work`."""
    torch.manual_seed(SEED)  # of the adapter's start
    make = {"sft": _sft, "dpo": _dpo, "replay": _grpo}[work.phase]
    return make(work, variant, scratch)


def _given(
    work: Work, variant: Variant, scratch: str, settings: SFTSettings, kind: Any, **more: Any
) -> dict[str, Any]:
    """The model, its tokenizer, the adapter's shape, and the arguments of the shipped method (plus
    `more`) for micro-batches."""
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    job = TrainingJob(method="", base=work.model, dataset="", out="", seed=SEED)
    units = work.load.batch // (2 if work.phase == "dpo" else 1)
    whole = settings.model_copy(update={"epochs": 1.0, "batch_size": units // variant.pieces})
    arguments = fit.arguments(
        kind, job, whole, scratch, gradient_accumulation_steps=variant.pieces,
        use_liger_kernel=variant.liger, **more,
    )  # fmt: skip
    low = variant.half and fit.bfloat16(settings, GPU)
    attention = {"attn_implementation": variant.attention} if variant.attention else {}
    dtype = torch.bfloat16 if low else torch.float32
    lora = LoraConfig(
        r=settings.r, lora_alpha=settings.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return {
        "model": fit.load(job, AutoModelForCausalLM, dtype, **attention),
        "args": arguments,
        "processing_class": fit.tokenizer_of(job.base),
        "peft_config": lora,
    }


def _in_order(kind: Any, units: Sequence[int]) -> Any:
    """`kind`, taking its rows in the order given."""

    class Ordered(kind):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return list(units)

    return Ordered


def _sft(work: Work, variant: Variant, scratch: str) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    columns = [
        {"input_ids": one.prompt + one.ids,
         "completion_mask": [0] * len(one.prompt) + [1] * len(one.ids)}
        for one in work.data
    ]  # fmt: skip
    given = _given(
        work, variant, scratch, SFTSettings(), SFTConfig,
        max_length=None, completion_only_loss=True, padding_free=variant.flat,
    )  # fmt: skip
    trainer = _in_order(SFTTrainer, [at for step in work.steps for at in step])
    return trainer(train_dataset=Dataset.from_list(columns), **given)


def _dpo(work: Work, variant: Variant, scratch: str) -> Any:
    """The pass of the reference is within each step."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Tokenised(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    settings = DPOSettings()
    columns = [
        {"prompt_ids": one.prompt, "chosen_ids": one.ids, "rejected_ids": other.ids}
        for one, other in pairs(work.data)
    ]
    given = _given(
        work, variant, scratch, settings, DPOConfig,
        max_length=None, beta=settings.beta, loss_type=[settings.loss],
    )  # fmt: skip
    trainer = _in_order(Tokenised, [at // 2 for step in work.steps for at in step[::2]])
    return trainer(train_dataset=Dataset.from_list(columns), **given)


def _grpo(work: Work, variant: Variant, scratch: str) -> Any:
    """TRL has no replay of stored rows; nearest is a rollout function that returns them, with their
    log-probs put where its loss looks for those of an older policy."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    class Stored(GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            found = super()._generate_and_score_completions(inputs)
            return found | {"old_per_token_logps": found["sampling_per_token_logps"]}

    def stored(prompts: list[str], trainer: Any) -> dict[str, Any]:
        rows = [work.data[int(prompt)] for prompt in prompts]
        return {
            "prompt_ids": [one.prompt for one in rows],
            "completion_ids": [one.ids for one in rows],
            "logprobs": [list(one.logprobs) for one in rows],
        }

    def reward(prompts: list[str], **_: Any) -> list[float]:
        return [advantage(int(prompt)) for prompt in prompts]

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    settings = ReplaySettings()
    clip = settings.clip
    assert clip is not None
    given = _given(
        work, variant, scratch, settings, GRPOConfig,
        num_generations=work.load.samples, max_completion_length=work.load.answer[1], beta=0.0,
        scale_rewards="none", loss_type="dapo", epsilon=clip.low, epsilon_high=clip.high,
        lr_scheduler_type=settings.schedule, weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm, disable_dropout=True,
    )  # fmt: skip
    # Its loader hands over all rows of a step once for each micro-batch.
    trainer = _in_order(Stored, [
        at for step in work.steps for _ in range(variant.pieces) for at in step
    ])  # fmt: skip
    prompts = [str(at) for at in range(len(work.data))]
    return trainer(
        train_dataset=Dataset.from_dict({"prompt": prompts}), reward_funcs=reward,
        rollout_func=stored, **given,
    )  # fmt: skip
