"""The data of a training benchmark, the order of its steps, and the figures of a run.

In: the size of a phase and records of its steps. Out: random rows, which rows make up each step,
and speed, utilisation and memory of what came after the warm-up. No torch here. Both trainers take
the rows of this order, so each step of one is a step of the other on the same tokens.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from agentloop.records import Row
from agentloop.training.examples import length_bucketed
from agentloop.training.replay_rows import sample, steps
from agentloop.training.replay_settings import ReplaySettings
from benchmarks.harness import median

RESERVED = 32
"""Ids below are never drawn: what a model is given of them is padding."""
SEED = 1
"""Of the jobs. A trainer's first pass is drawn by the next number."""
Run = Mapping[str, Any]
"""What `benchmarks.training_variants` prints at its end."""


@dataclass(frozen=True)
class Load:
    """`count` steps of `batch` rows; a prompt has `samples` answers, lengths are drawn in [lowest,
    highest]."""

    count: int
    batch: int
    samples: int
    prompt: tuple[int, int]
    answer: tuple[int, int]
    seed: int = 7


@dataclass(frozen=True)
class Answer:
    """One row: a prompt and an answer as ids, and the log-probs that it was sampled with."""

    group: int
    prompt: list[int]
    ids: list[int]
    logprobs: tuple[float, ...] = ()

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.prompt) + len(self.ids)


def draw(load: Load, vocabulary: int) -> list[Answer]:
    """Random ids, prompts shared within a group and different between groups."""
    chance = random.Random(load.seed)

    def ids(bounds: tuple[int, int]) -> list[int]:
        return [chance.randrange(RESERVED, vocabulary) for _ in range(chance.randint(*bounds))]

    found = []
    for group in range(load.count * load.batch // load.samples):
        prompt = ids(load.prompt)
        found += [Answer(group, prompt, ids(load.answer)) for _ in range(load.samples)]
    return found


def row_of(phase: str, one: Answer, at: int) -> Row:
    """Row number `at` as a job takes it: the even ones are good."""
    pairs, replay = phase == "dpo", phase == "replay"
    return Row(
        episode=f"ep-{at:05}", prompt=(), segments=(tuple(one.prompt), tuple(one.ids)),
        sampled=(False, True), group=f"group-{one.group}",
        pair=f"pair-{one.group}" if pairs else "", label=at % 2 == 0 if pairs else None,
        logprobs=((), one.logprobs) if replay else (),
        advantages=(0.0, advantage(at)) if replay else (),
    )  # fmt: skip


def advantage(at: int) -> float:
    """Of row number `at`; the mean of a group is 0."""
    return 1.0 if at % 2 == 0 else -1.0


def order(phase: str, data: Sequence[Answer], load: Load) -> list[list[int]]:
    """The rows of each step, as the shipped methods draw them: of like length, or whole groups."""
    if phase == "replay":
        whole = [replace(one, logprobs=(0.0,) * len(one.ids)) for one in data]
        rows = [sample(row_of(phase, one, at), ReplaySettings()) for at, one in enumerate(whole)]
        return steps(rows, load.batch, SEED + 1)
    if phase == "dpo":
        lengths = [one.length + len(other.ids) for one, other in pairs(data)]
        drawn = length_bucketed(lengths, load.batch // 2, SEED + 1)
        flat = [row for pair in drawn for row in (2 * pair, 2 * pair + 1)]
    else:
        flat = length_bucketed([one.length for one in data], load.batch, SEED + 1)
    return [flat[at : at + load.batch] for at in range(0, len(flat), load.batch)]


def pairs(data: Sequence[Answer]) -> list[tuple[Answer, Answer]]:
    """Rows two by two, the good one first."""
    return list(zip(data[::2], data[1::2], strict=True))


# --- TRL's configurations -------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """`half`: the frozen weights in bfloat16. `pieces`: micro-batches of a step. `flat`: one
    sequence without padding, as packing makes it. `liger`: its fused kernels. `attention`: as
    transformers names it."""

    half: bool = True
    pieces: int = 1
    flat: bool = False
    liger: bool = False
    attention: str | None = None


VARIANTS = {
    "trl": Variant(half=False),
    "trl, bfloat16 weights": Variant(),
    "trl, bfloat16 weights, two micro-batches": Variant(pieces=2),
    "trl, bfloat16 weights, no padding": Variant(flat=True),
    "trl, no padding, flash attention": Variant(flat=True, attention="flash_attention_2"),
    "trl, flash attention": Variant(attention="flash_attention_2"),
    "trl, liger": Variant(liger=True),
}


def candidates(phase: str, *, gpu: bool) -> list[str]:
    """The variants worth trying for a phase: those whose packages are installed, and that TRL has
    (padding-free training is of fine-tuning alone)."""
    found = []
    for name, one in VARIANTS.items():
        missing = (one.liger and not find_spec("liger_kernel")) or (
            one.attention and not find_spec("flash_attn")
        )
        elsewhere = (one.liger or one.attention) and not gpu
        if not (missing or elsewhere or (one.flat and phase != "sft") or (gpu and not one.half)):
            found.append(name)
    return found


# --- figures ------------------------------------------------------------------------------------


def figures(run: Run, warm: int) -> dict[str, float]:
    """Of the steps after the first `warm`: useful and computed tokens per second, shares of the
    matrix rate, the loss at the end, and the peak memory of the process (on a GPU, of the device).

    Useful tokens are those of the rows: `share_6pt` is what is called model FLOPs utilisation
    (Chowdhery et al. 2022, PaLM, appendix B). Computed ones went through the model with a gradient,
    padding left out: what a group shares counts once if it was computed once.
    """
    later = run["steps"][warm:]
    seconds = sum(seconds_of(run, warm))
    useful, computed = (sum(one[key] for one in later) for key in ("tokens", "computed"))
    whole, rate = run["body"] + run["head"], run["gflops"] * 1e9
    needed = run["body"] * computed + run["head"] * sum(one["answers"] for one in later)
    reference = 2 if run["reference"] else 0
    found = {
        "tokens_per_second": useful / seconds,
        "computed_tokens_per_second": computed / seconds,
        "matrix_gflops": run["gflops"],
        "share_6pt": 6 * whole * useful / seconds / rate,
        "share_6pt_computed": 6 * whole * computed / seconds / rate,
        # An adapter needs no gradient of the frozen weights, and only answers need the vocabulary;
        # a pass without a gradient over the same tokens is two operations for each of them.
        "share_needed": (4 + reference) * needed / seconds / rate,
        "peak_mb": later[-1]["peak_mb"],
        "first_loss": run["steps"][0]["loss"],
        "last_loss": later[-1]["loss"],
        "timed_steps": len(later),
    }  # fmt: skip
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def seconds_of(run: Run, warm: int) -> list[float]:
    """Of each step after the first `warm`, with its share of a pass made before them (DPO's
    reference); of the clock on a GPU, else of processor time."""
    whole = sum(one["tokens"] for one in run["steps"])
    before = run.get("before", {}).get(run["clock"], 0.0) / whole
    return [one[run["clock"]] + before * one["tokens"] for one in run["steps"][warm:]]


def faster(ours: Run, theirs: Run, warm: int) -> float:
    """How many times faster: the median over the steps, which have the same tokens in both."""
    both = zip(seconds_of(ours, warm), seconds_of(theirs, warm), strict=True)
    return median([b / a for a, b in both])


def apart(ours: Run, theirs: Run, key: str) -> float:
    """How far the two are apart in `key` (`loss`, `grad_norm`) at any step that both made, as a
    share of theirs, or absolute where theirs is below 1."""
    both = zip(ours["steps"], theirs["steps"], strict=False)
    worst = max(abs(a[key] - b[key]) / max(1.0, abs(b[key])) for a, b in both)
    return float(f"{worst:.3g}")
