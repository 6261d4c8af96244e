"""One trainer on one phase: the process that `benchmarks.training` and `benchmarks.gpu` start.

In: a phase (sft, dpo, replay), who trains (ours or a variant of `benchmarks.training_trl`), a model
directory and the size of the data. Out: one line of JSON for each optimizer step, and one with all
of them at the end (`training_data.figures` reads it). With `--turns` a step waits for a line on
stdin. A step is timed from the end of the one before, so it has all that a step needs: its rows,
both passes, the optimizer, the log. Both trainers have the same arguments, adapter and seed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from agentloop.records import TrainingJob
from agentloop.training import fit
from agentloop.training.artifact import peak_rss
from agentloop.training.settings import SFTSettings
from agentloop.trajectories import rows_file
from benchmarks.harness import spent
from benchmarks.training_data import (
    RESERVED,
    SEED,
    VARIANTS,
    Answer,
    Load,
    draw,
    order,
    row_of,
)
from benchmarks.training_trl import GPU, Work, trainer_of

METHODS = {"sft": "sft:train", "dpo": "preference:dpo", "replay": "replay:train"}


class Steps(TrainerCallback):  # type: ignore[misc]
    """Times each step of whatever trainer is made in this process, and says so on `out`."""

    def __init__(self, tokens: Sequence[tuple[int, int]], out: IO[str], *, turns: bool) -> None:
        """`tokens`: of each step, those of its rows and of its answers."""
        self.tokens, self.out, self.turns = tokens, out, turns
        self.done: list[dict[str, float]] = []
        self._seen: list[torch.Tensor] = []

    def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
        """Look at what goes into the model, and wait for the first turn."""
        model.get_input_embeddings().register_forward_pre_hook(self._count)
        self._say({"ready": True})
        self._go()

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        """The last thing a step does."""
        if "loss" not in logs:
            return
        if GPU:
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        peak = torch.cuda.max_memory_allocated() if GPU else peak_rss()
        rows, answers = self.tokens[len(self.done)]
        self.done.append({
            "wall": wall, "cpu": cpu, "tokens": rows, "answers": answers, "peak_mb": peak / 1e6,
            "computed": sum(int(one) for one in self._seen),
            "loss": float(logs["loss"]), "grad_norm": float(logs["grad_norm"]),
        })  # fmt: skip
        self._seen.clear()
        self._say(self.done[-1])
        if len(self.done) < len(self.tokens):
            self._go()

    def _count(self, _: Any, given: tuple[torch.Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            self._seen.append((given[0] >= RESERVED).sum())

    def _say(self, what: dict[str, Any]) -> None:
        self.out.write(json.dumps(what) + "\n")
        self.out.flush()

    def _go(self) -> None:
        if self.turns and not sys.stdin.readline():
            sys.exit(0)  # not wanted any more
        self._wall, self._cpu = time.perf_counter(), time.process_time()


def ours(phase: str, model: Path, data: list[Answer], load: Load, scratch: Path) -> dict[str, Any]:
    """Run the shipped method in this process; gives what it spent before the first step."""
    from agentloop.refs import resolve

    rows = [row_of(phase, one, at) for at, one in enumerate(data)]
    rows_file.write_rows(scratch, rows_file.lines_of(rows), {})
    units = load.batch // 2 if phase == "dpo" else load.batch
    settings: dict[str, Any] = {"epochs": 1, "batch_size": units}
    if phase != "sft":
        off = {"max_kl": None, "min_entropy": None, "max_growth": None}
        settings["guards"] = off  # random ids are nothing that a policy would say
    job = TrainingJob(
        method="", base=str(model), dataset=str(scratch / rows_file.NAME),
        out=str(scratch / "out"), settings=settings, seed=SEED,
    )  # fmt: skip
    train: Any = resolve(f"agentloop.training.{METHODS[phase]}")
    metrics = train(job).metrics
    return {
        "wall": metrics.get("reference_seconds", 0.0),
        "cpu": metrics.get("reference_cpu_seconds", 0.0),
    }


def score(model: Path, data: Sequence[Answer]) -> list[list[float]]:
    """The log-probs of the answers under the model, as if it had sampled them."""
    from transformers import AutoModelForCausalLM

    device = "cuda" if GPU else "cpu"
    low = fit.bfloat16(SFTSettings(), GPU)
    job = TrainingJob(method="", base=str(model), dataset="", out="", seed=SEED)
    policy = fit.load(job, AutoModelForCausalLM, "auto" if GPU else torch.float32).to(device).eval()
    found = []
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=low):
        for one in data:
            ids = torch.tensor([one.prompt + one.ids], device=device)
            many = len(one.ids)
            logits = policy(ids, logits_to_keep=many + 1).logits[0, :-1].float()
            logp = logits.log_softmax(-1).gather(1, ids[0, -many:, None])
            found.append([round(value, 4) for value in logp[:, 0].tolist()])
    return found


def matrix_rate() -> float:
    """Operations per second of a square product in the precision of training; like the steps, per
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
    parser.add_argument("phase", choices=list(METHODS))
    parser.add_argument("who", choices=["score", "ours", *VARIANTS])
    parser.add_argument("model", type=Path)
    parser.add_argument("load", help="Load as JSON")
    parser.add_argument("--stored", type=Path, help="what `score` found, for replay")
    parser.add_argument("--turns", action="store_true", help="wait for a line before each step")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the trainers print is not for the parent process
    read: dict[str, Any] = json.loads(given.load)
    load = Load(**read | {name: tuple(read[name]) for name in ("prompt", "answer")})
    data = draw(load, json.loads((given.model / "config.json").read_text())["vocab_size"])
    if given.who == "score":
        found: dict[str, Any] = {"logprobs": score(given.model, data)}
    else:
        if given.stored:
            told = json.loads(given.stored.read_text())["logprobs"]
            pairs = zip(data, told, strict=True)
            data = [replace(one, logprobs=tuple(logprobs)) for one, logprobs in pairs]
        found = trained(given, data, load, out)
    out.write(json.dumps(found) + "\n")
    out.flush()


def trained(
    given: argparse.Namespace, data: list[Answer], load: Load, out: IO[str]
) -> dict[str, Any]:
    """Train as the command line says; gives what is printed at the end."""
    rate, (body, head) = matrix_rate(), sizes(given.model)
    steps = order(given.phase, data, load)
    tokens = [
        (sum(data[at].length for at in step), sum(len(data[at].ids) for at in step))
        for step in steps
    ]
    watch = Steps(tokens, out, turns=given.turns)
    DEFAULT_CALLBACKS.append(watch)  # a method makes its trainer itself
    with tempfile.TemporaryDirectory() as folder:

        def run() -> dict[str, Any]:
            if given.who == "ours":
                return ours(given.phase, given.model, data, load, Path(folder))
            work = Work(given.phase, str(given.model), data, steps, load)
            trainer_of(work, VARIANTS[given.who], folder).train()
            return {}

        try:
            before, where = _watched(run) if given.profile else (run(), {})
        finally:
            DEFAULT_CALLBACKS.remove(watch)
    return {
        "clock": "wall" if GPU else "cpu", "gflops": rate / 1e9, "body": body, "head": head,
        "steps": watch.done, "before": before, "where": where,
        "reference": given.phase == "dpo",
    }  # fmt: skip


def _watched(run: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], dict[str, float]]:
    """What `run` gives, and the largest shares of its time by operation."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if GPU else [])]
    with profiler(activities=kinds) as watched:
        found = run()
    key = "self_device_time_total" if GPU else "self_cpu_time_total"
    events = sorted(watched.key_averages(), key=lambda one: -float(vars(one).get(key, 0) or 0))
    took = {one.key: float(vars(one).get(key, 0) or 0) for one in events}
    total = sum(took.values()) or 1.0
    return found, {name[:60]: round(t / total, 3) for name, t in [*took.items()][:12]}


if __name__ == "__main__":
    main()
