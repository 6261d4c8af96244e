"""Training on one CUDA GPU beside raw TRL, in bfloat16: fine-tuning, policy gradients, replay.

A randomly initialised model of 0.6 B parameters (Qwen3's shape), a low-rank adapter, random ids;
every variant is a process of its own and they take turns. TRL competes in several configurations
(micro-batches, no padding, and with flash attention or liger's kernels where these are installed);
after one run of each, the fastest is measured. The first two steps of a run are not counted. `grpo`
has no beginnings worth sharing, so it shows the trainer alone; `replay` has groups of sixteen under
long prompts, as rollouts of an agent are. A last run of each under the profiler says where the time
goes. The result is also written to `benchmarks/results/gpu.json`. Without a GPU there is nothing to
measure: exit code 2.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Check, Result, alternate, main, median, medians
from benchmarks.training import compared, stored
from benchmarks.training_data import candidates, figures

Load = dict[str, Any]
LOADS: dict[str, tuple[str, Load, float]] = {
    "sft": ("sft", {"count": 12, "batch": 32, "samples": 1, "prompt": [64, 512],
                    "answer": [64, 512]}, 1.0),
    "grpo": ("replay", {"count": 12, "batch": 32, "samples": 8, "prompt": [16, 32],
                        "answer": [128, 512]}, 1.0),
    "replay": ("replay", {"count": 12, "batch": 32, "samples": 16, "prompt": [512, 1024],
                          "answer": [32, 128]}, 1.5),
}  # fmt: skip
"""Phase -> (method, data, least share of TRL's tokens per second)."""
WARM = 2
"""Steps that are not counted."""
RESULTS = Path(__file__).parent / "results" / "gpu.json"
_CODE = "import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else '')"
_MODEL = """
import sys, torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
raw = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, words[0]))
PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=words[2],
                        pad_token=words[0]).save_pretrained(sys.argv[1])
torch.manual_seed(0)
config = Qwen3Config(
    vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
    num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    max_position_embeddings=4096, dtype="bfloat16")
with torch.device("cuda"):
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(sys.argv[1])
"""


def device() -> str:
    """The GPU's name, empty without one; torch is asked in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _CODE], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def measure(quick: bool) -> Result:
    """Five rounds of each phase and a profile (quickly: one round of four steps)."""
    result = Result([{"device": device()}], [], ("torch", "trl", "peft", "transformers"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model"
        subprocess.run([sys.executable, "-c", _MODEL, str(model)], check=True, capture_output=True)
        for phase, (method, load, least) in LOADS.items():
            load = load | {"count": 4} if quick else load
            begin = [sys.executable, "-m", "benchmarks.training_variants", method]
            end = [str(model), json.dumps(load), *stored(begin, model, load, folder)]
            commands = {who: [*begin, who, *end] for who in ("ours", *candidates(method, gpu=True))}
            rows, checks = _phase(phase, least, commands, 1 if quick else 5)
            result.rows += rows
            result.checks = [*result.checks, *checks]
    if not quick:
        _keep(result)
    return result


def _phase(
    phase: str, least: float, commands: dict[str, list[str]], rounds: int
) -> tuple[list[dict[str, Any]], list[Check]]:
    peers = {who: command for who, command in commands.items() if who != "ours"}
    trial: dict[str, dict[str, float]] = {}
    rows: list[dict[str, Any]] = []
    for who, command in peers.items():
        try:
            run = alternate({who: command}, 1, timeout=600)[who][0]
            trial[who] = figures(run, WARM)
        except RuntimeError as error:  # kernels that are installed and do not fit this GPU
            rows.append({"phase": phase, "who": who, "skipped": str(error)[-300:]})
    best = max(trial, key=lambda who: trial[who]["tokens_per_second"])
    both = {who: commands[who] for who in ("ours", best)}
    measured = alternate(both, rounds, timeout=600)
    profiled = {who: [*each, "--profile"] for who, each in both.items()}
    where = alternate(profiled, 1, timeout=600)
    rows += [
        {"phase": phase, "who": who, **medians([figures(run, WARM) for run in runs]),
         "where": where[who][0]["where"]}
        for who, runs in measured.items()
    ]  # fmt: skip
    rows += [
        {"phase": phase, "who": who, "slower": "left after the trial", **one}
        for who, one in trial.items() if who != best
    ]  # fmt: skip
    return rows, _over_rounds(phase, measured["ours"], measured[best], least)


def _over_rounds(
    phase: str, ours: Sequence[dict[str, Any]], trl: Sequence[dict[str, Any]], least: float
) -> list[Check]:
    """The checks of a round, with the median of each figure."""
    both = zip(ours, trl, strict=True)
    rounds = [compared(phase, mine, [theirs], least, WARM) for mine, theirs in both]
    return [
        Check(same[0].name, median([one.value for one in same]), same[0].target, same[0].at_most)
        for same in zip(*rounds, strict=True)
    ]


def _keep(result: Result) -> None:
    """The result file, to be committed: few have the machine."""
    from benchmarks.harness import machine, versions

    RESULTS.parent.mkdir(exist_ok=True)
    document = {
        "name": "gpu", "machine": machine(), "versions": versions(result.packages),
        "rows": result.rows,
        "checks": [{"name": one.name, "value": one.value, "target": one.target, "ok": one.ok}
                   for one in result.checks],
    }  # fmt: skip
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if not device():
        sys.stderr.write(
            "benchmarks.gpu needs a CUDA GPU that torch can use, and there is none here; "
            "`python -m benchmarks.training` measures the same on a processor\n"
        )
        sys.exit(2)
    main("gpu", measure)
