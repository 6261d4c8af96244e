"""One model of a policy and its base: `python -m agentloop.training.merge BASE POLICY OUT`.

In: the base model, a policy's directory (an adapter, or whole weights), an empty folder. Out: the
folder with `config.json`, `model.safetensors` and the base's tokenizer and generation settings,
which any engine loads. The decision worth knowing: an adapter is merged in float32 and rounded once
to the base's own precision. Imports torch: a process of its own.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from agentloop.errors import AgentLoopError, UsageError
from agentloop.training.artifact import CONFIG, FULL_CONFIG, FULL_WEIGHTS
from agentloop.training.fit import check_finite
from agentloop.training.worker import die_with_parent

_BESIDE = (".json", ".jinja", ".txt", ".model")
"""Endings of a base model's files that are neither weights nor code."""
_NOT = ("manifest.json", "result.json")


def merge(base: Path, policy: Path, out: Path) -> None:
    """Fill `out`, an existing folder. Raises `UsageError` when the policy is no language model."""
    for entry in sorted(base.iterdir()):
        wanted = entry.suffix in _BESIDE and not entry.name.endswith(".index.json")
        if wanted and entry.is_file() and entry.name not in _NOT:
            shutil.copyfile(entry, out / entry.name)
    if (policy / CONFIG).is_file():
        _merge_adapter(base, policy, out)
    else:
        for name in (FULL_CONFIG, FULL_WEIGHTS):
            shutil.copyfile(policy / name, out / name)


def _merge_adapter(base: Path, policy: Path, out: Path) -> None:
    task = PeftConfig.from_pretrained(str(policy)).task_type
    if task != "CAUSAL_LM":
        raise UsageError(f"`{policy}` is no language model ({task}), so it has nothing to serve")
    given: dict[str, Any] = {"local_files_only": True}
    precision = AutoConfig.from_pretrained(str(base), **given).dtype or torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        str(base), dtype=torch.float32, use_safetensors=True, **given
    )
    merged = PeftModel.from_pretrained(model, str(policy)).merge_and_unload(safe_merge=True)
    check_finite(merged.requires_grad_(True))
    merged.to(precision).save_pretrained(out, max_shard_size="1000GB")


def main(arguments: Sequence[str]) -> int:
    """Merge; the last line on stderr says what went wrong."""
    if len(arguments) != 3:
        sys.stderr.write("usage: python -m agentloop.training.merge BASE POLICY OUT\n")
        return 2
    die_with_parent()
    try:
        base, policy, out = map(Path, arguments)
        merge(base, policy, out)
    except (AgentLoopError, OSError, ValueError) as error:
        sys.stderr.write(str(error).replace("\n", " ") + "\n")
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
