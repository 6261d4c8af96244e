"""One trainer on one phase: the process that `benchmarks.training` and `benchmarks.gpu` start.

In: a phase (sft, dpo, replay), who trains (ours, trl), a model directory and the size of the data.
Out: one line of JSON: tokens of the rows (prompt and answer, padding not counted) per second of the
GPU's clock or of processor time, peak memory, and the matrix rate measured in the same process.
Both train the same adapter on the same random ids in the same batches; TRL sorts by length, which
is what helps it most here, and is given ids, so nobody tokenises.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agentloop.records import Row, TrainingJob
from agentloop.training import fit
from agentloop.training.settings import SFTSettings
from agentloop.trajectories import rows_file
from benchmarks.harness import spent

GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class Load:
    """`groups` prompts with `samples` answers each; lengths are drawn in [lowest, highest]."""

    groups: int
    samples: int
    prompt: tuple[int, int]
    answer: tuple[int, int]
    batch: int
    """Rows for one step."""
    seed: int = 7


@dataclass(frozen=True)
class Answer:
    """One row: a prompt and an answer as ids."""

    group: int
    prompt: list[int]
    ids: list[int]

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.prompt) + len(self.ids)


def draw(load: Load, vocabulary: int) -> list[Answer]:
    """The data: random ids, prompts shared within a group and different between groups."""
    chance = random.Random(load.seed)

    def ids(bounds: tuple[int, int]) -> list[int]:
        return [chance.randrange(10, vocabulary) for _ in range(chance.randint(*bounds))]

    found = []
    for group in range(load.groups):
        prompt = ids(load.prompt)
        found += [Answer(group, prompt, ids(load.answer)) for _ in range(load.samples)]
    return found


# --- ours -----------------------------------------------------------------------------------------


def ours(phase: str, model: Path, data: list[Answer], load: Load, scratch: Path) -> dict[str, Any]:
    """Run the shipped method in this process."""
    from agentloop.refs import resolve

    method = {"sft": "sft:train", "dpo": "preference:dpo", "replay": "replay:train"}[phase]
    rows_file.write_rows(scratch, rows_file.lines_of([_row(phase, one, at) for at, one in
                                                      enumerate(data)]), {})  # fmt: skip
    settings: dict[str, Any] = {"epochs": 1, "batch_size": _batch(phase, load)}
    if phase != "sft":
        off = {"max_kl": None, "min_entropy": None, "max_growth": None}
        settings["guards"] = off  # random ids are nothing that a policy would say
    job = TrainingJob(
        method="", base=str(model), dataset=str(scratch / rows_file.NAME),
        out=str(scratch / "out"), settings=settings, seed=1,
    )  # fmt: skip
    train: Any = resolve(f"agentloop.training.{method}")
    silence = os.dup(1)
    os.dup2(2, 1)  # metric lines are for a parent process
    try:
        metrics = train(job).metrics
    finally:
        sys.stdout.flush()
        os.dup2(silence, 1)
    return {
        "tokens": metrics["tokens"],
        "seconds": metrics["train_seconds"] + metrics.get("reference_seconds", 0.0),
        "cpu_seconds": metrics["cpu_seconds"] + metrics.get("reference_cpu_seconds", 0.0),
    }


def _row(phase: str, one: Answer, at: int) -> Row:
    pairs = phase == "dpo"
    return Row(
        episode=f"ep-{at:05}", prompt=(), segments=(tuple(one.prompt), tuple(one.ids)),
        sampled=(False, True), group=f"group-{one.group}",
        pair=f"pair-{one.group}" if pairs else "", label=at % 2 == 0 if pairs else None,
        logprobs=((), tuple(-10.0 for _ in one.ids)) if phase == "replay" else (),
        advantages=(0.0, 1.0 if at % 2 else -1.0) if phase == "replay" else (),
    )  # fmt: skip


def _batch(phase: str, load: Load) -> int:
    return load.batch // 2 if phase == "dpo" else load.batch


# --- TRL ------------------------------------------------------------------------------------------


def trl(phase: str, model: Path, data: list[Answer], load: Load, scratch: Path) -> dict[str, Any]:
    """Run TRL's own trainer; a DPO run includes its pass for the reference, as ours does."""
    make = {"sft": _trl_sft, "dpo": _trl_dpo, "replay": _trl_grpo}[phase]
    job = TrainingJob(method="", base=str(model), dataset="", out="", seed=1)
    trainer = make(job, data, load, str(scratch))
    with spent() as took:
        trainer.train()
    tokens = float(sum(one.length for one in data))
    return {"tokens": tokens, "seconds": took.wall, "cpu_seconds": took.cpu}


def _arguments(kind: Any, job: TrainingJob, batch: int, scratch: str, **more: Any) -> Any:
    settings = SFTSettings(epochs=1, batch_size=batch)
    return fit.arguments(kind, job, settings, scratch, **more)


def _model(job: TrainingJob) -> Any:
    from transformers import AutoModelForCausalLM

    return fit.load(job, AutoModelForCausalLM, "auto" if GPU else torch.float32)


def _adapter() -> Any:
    from peft import LoraConfig

    given = SFTSettings()
    return LoraConfig(
        r=given.r, lora_alpha=given.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def _trl_sft(job: TrainingJob, data: list[Answer], load: Load, scratch: str) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    columns = [
        {"input_ids": one.prompt + one.ids, "length": one.length,
         "completion_mask": [0] * len(one.prompt) + [1] * len(one.ids)}
        for one in data
    ]  # fmt: skip
    return SFTTrainer(
        model=_model(job),
        args=_arguments(SFTConfig, job, _batch("sft", load), scratch, max_length=None,
                        completion_only_loss=True, train_sampling_strategy="group_by_length"),
        train_dataset=Dataset.from_list(columns),
        processing_class=fit.tokenizer_of(job.base),
        peft_config=_adapter(),
    )  # fmt: skip


def _trl_dpo(job: TrainingJob, data: list[Answer], load: Load, scratch: str) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Tokenised(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    columns = [
        {"prompt_ids": one.prompt, "chosen_ids": one.ids, "rejected_ids": other.ids,
         "length": one.length + other.length}
        for one, other in zip(data[::2], data[1::2], strict=True)
    ]  # fmt: skip
    return Tokenised(
        model=_model(job),
        args=_arguments(DPOConfig, job, _batch("dpo", load), scratch, max_length=None,
                        train_sampling_strategy="group_by_length"),
        train_dataset=Dataset.from_list(columns),
        processing_class=fit.tokenizer_of(job.base),
        peft_config=_adapter(),
    )  # fmt: skip


def _trl_grpo(job: TrainingJob, data: list[Answer], load: Load, scratch: str) -> Any:
    """TRL has no replay of stored rows; nearest is a rollout function that returns them."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    left = {str(group): [one for one in data if one.group == group] for group in range(load.groups)}

    def stored(prompts: list[str], trainer: Any) -> dict[str, Any]:
        rows = [left[prompt].pop() for prompt in prompts]
        return {
            "prompt_ids": [one.prompt for one in rows],
            "completion_ids": [one.ids for one in rows],
            "logprobs": [[-10.0] * len(one.ids) for one in rows],
        }

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(at % 2) for at in range(len(completions))]

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    return GRPOTrainer(
        model=_model(job),
        args=_arguments(GRPOConfig, job, load.batch, scratch, num_generations=load.samples,
                        max_completion_length=load.answer[1], beta=0.0),
        train_dataset=Dataset.from_dict({"prompt": list(left)}),
        reward_funcs=reward,
        rollout_func=stored,
        processing_class=fit.tokenizer_of(job.base),
        peft_config=_adapter(),
    )  # fmt: skip


# --- the process ----------------------------------------------------------------------------------


def matrix_rate() -> float:
    """Operations per second of a square product in the precision of training; like the tokens, per
    second of the processor's time where there is no GPU, so that other work counts for none."""
    size = 8192 if GPU else 1024
    low = fit.bfloat16(SFTSettings(), GPU)
    kind = torch.bfloat16 if low else torch.float32
    a = torch.randn(size, size, dtype=kind, device="cuda" if GPU else "cpu")
    best = 0.0
    for _ in range(6):
        with spent() as took:
            for _ in range(3):
                a @ a
            if GPU:
                torch.cuda.synchronize()
        best = max(best, 6 * size**3 / (took.wall if GPU else took.cpu))
    return best


def sizes(model: Path) -> tuple[int, int]:
    """(parameters without the vocabulary, parameters of its projection)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model, local_files_only=True)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    head = made.get_output_embeddings().weight.numel()
    whole = sum(one.numel() for one in made.parameters())
    tables = head if config.tie_word_embeddings else 2 * head
    return whole - tables, head


def main() -> None:
    """Train once and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("phase", choices=["sft", "dpo", "replay"])
    parser.add_argument("who", choices=["ours", "trl"])
    parser.add_argument("model", type=Path)
    parser.add_argument("load", help="Load as JSON")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    read: dict[str, Any] = json.loads(given.load)
    load = Load(**read | {name: tuple(read[name]) for name in ("prompt", "answer")})
    vocabulary = json.loads((given.model / "config.json").read_text())["vocab_size"]
    data = draw(load, vocabulary)
    rate = matrix_rate()
    run = {"ours": ours, "trl": trl}[given.who]
    with tempfile.TemporaryDirectory() as folder:
        found = _measured(
            lambda: run(given.phase, given.model, data, load, Path(folder)), given.profile
        )
    from agentloop.training.artifact import peak_rss

    body, head = sizes(given.model)
    answers = sum(len(one.ids) for one in data)
    peak = torch.cuda.max_memory_allocated() if GPU else peak_rss()
    speed = found["tokens"] / found["seconds" if GPU else "cpu_seconds"]
    found |= {
        "tokens_per_second": speed,
        "peak_mb": peak / 1e6,
        "matrix_gflops": rate / 1e9,
        # An adapter needs no gradient of the frozen weights: 4 operations per parameter and token.
        # Only sampled tokens need the vocabulary. A reference pass adds 2, and is not counted.
        "share_needed": 4 * (body + head * answers / found["tokens"]) * speed / rate,
        "share_6pt": 6 * (body + head) * speed / rate,
    }
    print(json.dumps(found))


def _measured(run: Callable[[], dict[str, Any]], profile: bool) -> dict[str, Any]:
    if not profile:
        return run()
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if GPU else [])]
    with profiler(activities=kinds) as watched:
        found = run()
    key = "self_device_time_total" if GPU else "self_cpu_time_total"
    events = sorted(watched.key_averages(), key=lambda one: -float(vars(one).get(key, 0) or 0))
    spent = {one.key: float(vars(one).get(key, 0) or 0) for one in events}
    total = sum(spent.values()) or 1.0
    return found | {"where": {name[:60]: round(t / total, 3) for name, t in [*spent.items()][:12]}}


if __name__ == "__main__":
    main()
