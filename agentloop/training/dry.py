"""Training without torch: a real adapter that changes nothing, for tests of whole workflows.

In: a job. Out: what every method leaves, with checks of the same rows. The adapter is rank one
over one layer with B = 0, so a model that loads it behaves like its base; the safetensors file is
written by hand (8 bytes header length, JSON header, data).
"""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

from agentloop.errors import UsageError
from agentloop.records import TrainingJob, TrainingResult
from agentloop.training.artifact import CONFIG, WEIGHTS, finished, publish
from agentloop.training.examples import check_row
from agentloop.trajectories.rows_file import read_rows

_LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


class DryTrainer:
    """The `Trainer` port in this process."""

    async def train(self, job: TrainingJob) -> TrainingResult:
        """Check the rows and write the empty adapter; a finished job is returned again."""
        return finished(job) or train(job)


def train(job: TrainingJob) -> TrainingResult:
    """The training method. Raises `UsageError` when the rows could not be learned from."""
    started = time.perf_counter()
    rows = read_rows(Path(job.dataset))
    for row in rows:
        check_row(row)
    sampled = sum(
        len(segment)
        for row in rows
        for segment, flag in zip(row.segments, row.sampled, strict=True)
        if flag
    )
    metrics = {"rows": float(len(rows)), "sampled_tokens": float(sampled), "steps": 0.0}
    return publish(
        job,
        lambda directory: _write(directory, job.base),
        metrics=metrics,
        seconds=time.perf_counter() - started,
    )


def _write(directory: Path, base: str) -> None:
    width, out = _shape(Path(base))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "target_modules": [_LAYER.removeprefix("base_model.model.")],
        "r": 1,
        "lora_alpha": 1,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
    tensors = {f"{_LAYER}.lora_A.weight": (1, width), f"{_LAYER}.lora_B.weight": (out, 1)}
    (directory / WEIGHTS).write_bytes(_zeros(tensors))


def _shape(base: Path) -> tuple[int, int]:
    """(inputs, outputs) of the query projection, from the base's `config.json`; (1, 1) without."""
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 1, 1
    try:
        width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return width, heads * int(config.get("head_dim") or width // heads)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"`{base}/config.json` is not of a decoder with attention heads"
        ) from error


def _zeros(tensors: dict[str, tuple[int, int]]) -> bytes:
    """A safetensors file of float32 zeros."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (rows, columns) in sorted(tensors.items()):
        size = 4 * rows * columns
        header[name] = {
            "dtype": "F32",
            "shape": [rows, columns],
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    return struct.pack("<Q", len(text)) + text + bytes(end)
