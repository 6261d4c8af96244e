"""A peft LoRA directory in, fused low-rank updates out; and their application to mixed batches.

The decision worth knowing: q/k/v (and gate/up) are one product in `model`, so an adapter's A
matrices are stacked and its B matrices laid out block-diagonally with the scale folded in. Rows of
different adapters, and of the base model, then share every large product of a step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from agentloop.errors import UsageError
from agentloop.serving.model import Shape

_KEY = re.compile(
    r"(?:base_model\.model\.)?model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])"
    r"(?:\.default)?\.weight"
)
_WEIGHTS = "adapter_model.safetensors"
_UNSUPPORTED = ("use_dora", "alora_invocation_tokens", "modules_to_save", "trainable_token_indices")


@dataclass(frozen=True, slots=True)
class Adapter:
    """`updates[layer, map]` = (A [in, rank], B [rank, out] with the scale folded in)."""

    name: str
    uid: str
    updates: dict[tuple[int, str], tuple[Tensor, Tensor]]


def load_adapter(
    name: str, folder: Path, shape: Shape, *, uid: str, dtype: torch.dtype, device: torch.device
) -> Adapter:
    """Read and check a peft directory. `UsageError` says which of its files or tensors is wrong."""
    config = _config(folder)
    pairs = _tensors(folder, shape)
    rank_of, alpha_of = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    updates: dict[tuple[int, str], list[tuple[str, Tensor, Tensor]]] = {}
    for (layer, module), parts in pairs.items():
        if set(parts) != {"A", "B"}:
            raise UsageError(f"adapter {name}: layer {layer} {module} lacks its lora_A or lora_B")
        a, b = parts["A"].float(), parts["B"].float()
        fused, _, rows, columns = shape.targets()[module]
        rank = a.shape[0]
        if a.shape != (rank, columns) or b.shape != (rows, rank):
            raise UsageError(
                f"adapter {name}: layer {layer} {module} has shapes {tuple(a.shape)} and "
                f"{tuple(b.shape)}; this model needs (r, {columns}) and ({rows}, r)"
            )
        expected = _number(_pattern(rank_of, layer, module, config.get("r")), "r")
        if expected != rank:
            raise UsageError(
                f"adapter {name}: {module} has rank {rank}, its config says {expected}"
            )
        alpha = _number(_pattern(alpha_of, layer, module, config.get("lora_alpha")), "lora_alpha")
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        updates.setdefault((layer, fused), []).append((module, a, b * scale))
    packed = {
        key: tuple(t.to(device=device, dtype=dtype) for t in _fuse(parts, shape))
        for key, parts in updates.items()
    }
    return Adapter(name, uid, {key: (a, b) for key, (a, b) in packed.items()})


def _config(folder: Path) -> dict[str, object]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise UsageError(f"{folder} is no adapter: it has no adapter_config.json")
    try:
        config: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UsageError(f"{path} does not describe a LoRA adapter")
    used = [key for key in _UNSUPPORTED if config.get(key)]
    if used or config.get("bias", "none") != "none":
        raise UsageError(
            f"{path} uses {', '.join(used) or 'bias'}, which the engine does not serve"
        )
    return config


def _tensors(folder: Path, shape: Shape) -> dict[tuple[int, str], dict[str, Tensor]]:
    path = folder / _WEIGHTS
    if not path.is_file():
        raise UsageError(f"{folder} has no {_WEIGHTS}; pickled adapters are not loaded")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} cannot be read as safetensors: {error}") from error
    pairs: dict[tuple[int, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if not match or match[2] not in shape.targets() or int(match[1]) >= shape.layers:
            raise UsageError(f"{path} has the tensor {key}, which this model has no place for")
        if tensor.dim() != 2 or not torch.isfinite(tensor).all():
            raise UsageError(f"{path}: {key} is not a matrix of finite numbers")
        pairs.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor
    if not pairs:
        raise UsageError(f"{path} holds no LoRA tensors")
    return pairs


def _pattern(patterns: object, layer: int, module: str, default: object) -> object:
    if isinstance(patterns, dict):
        home = "self_attn" if module[0] in "qkvo" else "mlp"
        full = f"model.layers.{layer}.{home}.{module}"
        for key, value in patterns.items():  # peft matches a pattern at the end of a module's name
            if re.fullmatch(rf"(.*\.)?({key})", full):
                return value
    return default


def _number(value: object, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise UsageError(f"adapter_config.json has no positive `{name}`")
    return float(value)


def _fuse(parts: Sequence[tuple[str, Tensor, Tensor]], shape: Shape) -> tuple[Tensor, Tensor]:
    targets = shape.targets()
    fused = targets[parts[0][0]][0]
    height = sum(rows for name, _, rows, _ in targets.values() if name == fused)
    a = torch.cat([a for _, a, _ in parts]).T.contiguous()
    b = torch.zeros(a.shape[1], height)
    at = 0
    for module, low, up in parts:
        _, start, rows, _ = targets[module]
        b[at : at + low.shape[0], start : start + rows] = up.T
        at += low.shape[0]
    return a, b


class RowDeltas:
    """Updates for one step: each group is an adapter and the packed rows that use it."""

    def __init__(self, groups: Sequence[tuple[Adapter, Tensor]], total: int) -> None:
        self._groups = [(a, None if len(rows) == total else rows) for a, rows in groups]

    def add(self, out: Tensor, x: Tensor, layer: int, name: str) -> None:
        """See `model.Deltas`."""
        for adapter, rows in self._groups:
            update = adapter.updates.get((layer, name))
            if update is None:
                continue
            a, b = update
            if rows is None:
                out.addmm_(x @ a, b)
            else:
                out.index_add_(0, rows, (x.index_select(0, rows) @ a) @ b)
