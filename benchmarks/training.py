"""Training on stored rows beside raw TRL: fine-tuning, preferences, and replay of groups.

SmolLM2-135M, a low-rank adapter, the same random ids, batches and seed; every variant is a process
of its own and they take turns on one core. TRL is in the configuration that is fastest here: sorted
by length, without checkpointing of activations, in the precision the processor is made for, and it
is given ids. Rows share no prompt, but for the two of a pair and the samples of a group. The bound
is physical: the matrix rate measured in the same process.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from typing import Any

from agentloop.serving.weights import SMOLLM2
from agentloop.workspace import model_cache
from benchmarks.harness import Check, Result, alternate, main, medians, ratio

Load = dict[str, Any]
SFT: Load = {"groups": 16, "samples": 1, "prompt": [20, 100], "answer": [20, 80], "batch": 8}
DPO: Load = {"groups": 8, "samples": 2, "prompt": [30, 90], "answer": [15, 60], "batch": 8}
REPLAY: Load = {"groups": 2, "samples": 8, "prompt": [70, 100], "answer": [10, 40], "batch": 8}
QUICK: Load = {"groups": 8, "samples": 1, "prompt": [20, 60], "answer": [20, 60], "batch": 8}
PHASES = {"sft": (SFT, 0.97), "dpo": (DPO, 0.97), "replay": (REPLAY, 1.5)}
"""Each with the least share of TRL's tokens per second that ours must reach."""
UTILISATION = 0.4


def measure(quick: bool) -> Result:
    """Medians of five rounds for each phase; quickly: fine-tuning once, beside the bound."""
    model = model_cache() / SMOLLM2
    if not (model / "config.json").is_file() or find_spec("trl") is None:
        reason = "SmolLM2 or TRL is not installed; run: agentloop setup local"
        return Result([{"who": "training", "skipped": reason}])
    rows: list[dict[str, Any]] = []
    checks: list[Check] = []
    for phase, (load, least) in PHASES.items():
        if quick and phase != "sft":
            continue
        load = QUICK if quick else load
        command = [sys.executable, "-m", "benchmarks.training_variants", phase]
        commands = {who: [*command, who, str(model), json.dumps(load)] for who in ("ours", "trl")}
        measured = alternate(commands, 1 if quick else 5, timeout=600)
        found = {who: medians(runs) for who, runs in measured.items()}
        rows += [{"phase": phase, "who": who, **one} for who, one in found.items()]
        checks.append(Check(f"{phase}: share of the matrix rate, 6PT", found["ours"]["share_6pt"],
                            UTILISATION))  # fmt: skip
        if quick:
            continue
        speed = ratio(measured, "ours", "trl", "tokens_per_second")
        memory = ratio(measured, "ours", "trl", "peak_mb")
        checks += [
            Check(f"{phase}: tokens per second, share of TRL's", speed, least),
            Check(f"{phase}: peak memory, share of TRL's", memory, 1.0, at_most=True),
        ]
    return Result(rows, checks, ("torch", "trl", "peft", "transformers"))


if __name__ == "__main__":
    main("training", measure)
