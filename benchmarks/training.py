"""Training on stored rows beside raw TRL: fine-tuning, preferences, and replay of groups.

SmolLM2-135M, a low-rank adapter, the same random ids, steps, arguments and seed. Every variant is a
process of its own and they take turns on one core, step by step; the first step is not counted. TRL
competes in several configurations (weights in either precision, micro-batches, no padding), all
without checkpointing of activations, on rows of like length, and given ids; after a trial of
three steps the fastest goes on. Rows share no prompt, but for the two of a pair and the samples of
a group. That both did the same work is checked on the loss of each step. The bound is physical:
the matrix rate measured in the same process.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agentloop.serving.weights import SMOLLM2
from agentloop.workspace import model_cache
from benchmarks.harness import Check, Result, alternate, main
from benchmarks.training_data import apart, candidates, faster, figures
from benchmarks.turns import Line, compete

Load = dict[str, Any]
WARM = 1
"""Steps that are not counted: the first one allocates."""
TRIAL = 3
SFT: Load = {"count": 6, "batch": 8, "samples": 1, "prompt": [20, 60], "answer": [20, 50]}
DPO: Load = {"count": 6, "batch": 8, "samples": 2, "prompt": [30, 70], "answer": [15, 50]}
REPLAY: Load = {"count": 6, "batch": 8, "samples": 8, "prompt": [60, 90], "answer": [10, 30]}
QUICK: Load = {"count": 3, "batch": 8, "samples": 1, "prompt": [20, 40], "answer": [20, 40]}
PHASES = {"sft": (SFT, 0.97), "dpo": (DPO, 0.97), "replay": (REPLAY, 1.5)}
"""Each with the least share of TRL's tokens per second that ours must reach."""
UTILISATION = 0.4
LOSS_APART, GRADIENT_APART = 0.05, 0.1
"""How far two trainers may be apart in the loss of a step and in the norm of its gradient: products
are in bfloat16, whose steps are 0.4 % of a number, and with weights in bfloat16 TRL adds up its
layers in it as well. Where a probability ratio is clipped or not by that, gradients of TRL's own
configurations are up to 40 % apart, so ours is compared with the nearest of them."""


def measure(quick: bool) -> Result:
    """Five rounds for each phase; quickly: two of fine-tuning, against one configuration of TRL."""
    model = model_cache() / SMOLLM2
    if not (model / "config.json").is_file() or find_spec("trl") is None:
        reason = "SmolLM2 or TRL is not installed; run: agentloop setup local"
        return Result([{"who": "training", "skipped": reason}])
    found = Result(packages=("torch", "trl", "peft", "transformers"))
    with tempfile.TemporaryDirectory() as folder:
        for phase, (load, least) in PHASES.items():
            if not quick:
                _phase(found, phase, load, least, commands(phase, model, load, Path(folder)))
            elif phase == "sft":
                both = commands(phase, model, QUICK, Path(folder))
                _phase(found, phase, QUICK, least, dict(list(both.items())[:2]))
    return found


def commands(phase: str, model: Path, load: Load, folder: Path) -> dict[str, list[str]]:
    """Of ours, and of each configuration of TRL."""
    begin = [sys.executable, "-m", "benchmarks.training_variants", phase]
    end = [str(model), json.dumps(load), *stored(begin, model, load, folder)]
    return {who: [*begin, who, *end] for who in ("ours", *candidates(phase, gpu=False))}


def stored(begin: Sequence[str], model: Path, load: Load, folder: Path) -> list[str]:
    """The option that hands over the log-probs of the rows, for replay."""
    if begin[-1] != "replay":
        return []
    found = alternate({"score": [*begin, "score", str(model), json.dumps(load)]}, 1, timeout=600)
    path = folder / "stored.json"
    path.write_text(json.dumps(found["score"][0]))
    return ["--stored", str(path)]


def _phase(
    result: Result, phase: str, load: Load, least: float, found: dict[str, list[str]]
) -> None:
    """Run it and add its rows and checks."""
    mine, *theirs = ([*command, "--turns"] for command in found.values())
    peers = dict(zip(list(found)[1:], theirs, strict=True))
    ours, best, trl, out = compete(
        mine, peers, steps=load["count"], trial=min(TRIAL, load["count"]), cost=_cost, timeout=900
    )
    result.rows += [
        {"phase": phase, "who": "ours", **figures(ours, WARM)},
        {"phase": phase, "who": best, **figures(trl, WARM)},
        *({"phase": phase, "who": who, "slower": "left after the trial",
           "tokens_per_second": float(f"{1 / _cost(said):.4g}"),
           "peak_mb": round(said[-1]["peak_mb"])} for who, said in out.items()),
    ]  # fmt: skip
    others = [{"steps": said} for said in out.values()]
    result.checks += compared(phase, ours, [trl, *others], least, WARM)
    result.checks.append(
        Check(f"{phase}: share of the matrix rate, 6PT", figures(ours, WARM)["share_6pt"],
              UTILISATION)
    )  # fmt: skip


def compared(
    phase: str, ours: Line, theirs: Sequence[Line], least: float, warm: int
) -> list[Check]:
    """Speed and memory beside the first of TRL's, and whether all did the same."""
    trl = theirs[0]
    memory = ours["steps"][-1]["peak_mb"] / trl["steps"][-1]["peak_mb"]
    gradient = min(apart(ours, one, "grad_norm") for one in theirs)
    return [
        Check(f"{phase}: tokens per second, share of TRL's", faster(ours, trl, warm), least),
        Check(f"{phase}: peak memory, share of TRL's", round(memory, 3), 1.0, at_most=True),
        Check(f"{phase}: loss of a step, apart from TRL's", apart(ours, trl, "loss"),
              LOSS_APART, at_most=True),
        Check(f"{phase}: gradient of a step, apart from TRL's", gradient, GRADIENT_APART,
              at_most=True),
    ]  # fmt: skip


def _cost(said: Sequence[Line]) -> float:
    """Processor seconds per token."""
    later = said[WARM:]
    return float(sum(one["cpu"] for one in later) / sum(one["tokens"] for one in later))


if __name__ == "__main__":
    main("training", measure)
