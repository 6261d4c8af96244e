"""Training on one CUDA GPU beside raw TRL, in bfloat16: fine-tuning, policy gradients, replay.

A randomly initialised model of 0.6 B parameters (Qwen3's shape), a low-rank adapter, random ids;
every variant is a process of its own and they take turns. `grpo` has no beginnings worth sharing,
so it shows the trainer alone; `replay` has groups of sixteen under long prompts, as rollouts of an
agent are. A last run of each under the profiler says where the time goes. The result is also
written to `benchmarks/results/gpu.json`. Without a GPU there is nothing to measure: exit code 2.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Check, Result, alternate, main, medians, ratio

Load = dict[str, Any]
LOADS: dict[str, tuple[str, Load, float]] = {
    "sft": ("sft", {"groups": 384, "samples": 1, "prompt": [64, 512], "answer": [64, 512],
                    "batch": 32}, 1.0),
    "grpo": ("replay", {"groups": 48, "samples": 8, "prompt": [16, 32], "answer": [128, 512],
                        "batch": 32}, 1.0),
    "replay": ("replay", {"groups": 24, "samples": 16, "prompt": [512, 1024], "answer": [32, 128],
                          "batch": 32}, 1.5),
}  # fmt: skip
"""Phase -> (method, data, least share of TRL's tokens per second)."""
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
    """Medians of each phase (three rounds quickly, of an eighth of the data), and a profile."""
    rows: list[dict[str, Any]] = [{"device": device()}]
    checks: list[Check] = []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", _MODEL, folder], check=True, capture_output=True)
        for phase, (method, load, least) in LOADS.items():
            load = load | {"groups": load["groups"] // 8} if quick else load
            command = [sys.executable, "-m", "benchmarks.training_variants", method]
            commands = {who: [*command, who, folder, json.dumps(load)] for who in ("ours", "trl")}
            measured = alternate(commands, 1 if quick else 5, timeout=600)
            found = {who: medians(runs) for who, runs in measured.items()}
            profiled = {who: [*each, "--profile"] for who, each in commands.items()}
            where = alternate(profiled, 1, timeout=600)
            rows += [{"phase": phase, "who": who, **one, "where": where[who][0]["where"]}
                     for who, one in found.items()]  # fmt: skip
            speed = ratio(measured, "ours", "trl", "tokens_per_second")
            memory = ratio(measured, "ours", "trl", "peak_mb")
            checks += [
                Check(f"{phase}: tokens per second, share of TRL's", speed, least),
                Check(f"{phase}: peak memory, share of TRL's", memory, 1.0, at_most=True),
            ]
    result = Result(rows, checks, ("torch", "trl", "peft", "transformers"))
    if not quick:
        _keep(result)
    return result


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
