"""A Llama-like causal language model: packed tokens in, hidden states and logits out.

Covers Llama (and SmolLM2), Qwen2 and Qwen3. The decision worth knowing: the forward pass is written
for *packed* tokens, one row per token whatever request it belongs to, and attention is a callback.
So the large matrix products stay batched over decoding rows and prompt chunks of all requests, and
the q/k/v and gate/up projections are each one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from agentloop.serving.weights import check_model_dir

NATIVE = frozenset({"llama", "qwen2", "qwen3"})
_STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})


class Attend(Protocol):
    """Attention over whatever keys each token may see."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [N, heads, D], k and v [N, kv heads, D], rotated -> [N, heads * D]."""
        ...


class Deltas(Protocol):
    """Low-rank updates of the rows that use an adapter."""

    def add(self, out: Tensor, x: Tensor, layer: int, name: str) -> None:
        """Add the update of map `name` for inputs `x` [N, in] to `out` [N, out], in place."""
        ...


class Packed:
    """A linear map whose weight [out, in] is stored in the layout that multiplies fastest.

    On CPU that is oneDNN's blocked layout: at the few dozen rows of a decode step it is about twice
    as fast as a plain product, which re-packs the weight every time.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.bias = bias
        self.blocked: Tensor | None = None
        self.weight: Tensor | None = None
        if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
            try:
                self.blocked = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 64)
                return
            except (AttributeError, RuntimeError):
                self.blocked = None  # this build or this processor has no such layout
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        if self.blocked is not None:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self.blocked, self.bias, "none", [], ""
            )
            return y
        return F.linear(x, self.weight, self.bias)


@dataclass(slots=True)
class Layer:
    """One block's weights; `q_norm` and `k_norm` only in Qwen3."""

    norm1: Tensor
    norm2: Tensor
    qkv: Packed
    o: Packed
    gate_up: Packed
    down: Packed
    q_norm: Tensor | None
    k_norm: Tensor | None


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes that caches and adapters need."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocab: int
    context: int

    def targets(self) -> dict[str, tuple[str, int, int, int]]:
        """peft module name -> (fused map, first output row, output rows, input columns)."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": ("qkv", 0, q, self.hidden),
            "k_proj": ("qkv", q, kv, self.hidden),
            "v_proj": ("qkv", q + kv, kv, self.hidden),
            "o_proj": ("o", 0, self.hidden, q),
            "gate_proj": ("gate_up", 0, self.intermediate, self.hidden),
            "up_proj": ("gate_up", self.intermediate, self.intermediate, self.hidden),
            "down_proj": ("down", 0, self.hidden, self.intermediate),
        }


class Checkpoint:
    """Memory-mapped tensors of a safetensors directory, by name."""

    def __init__(self, files: Sequence[Path]) -> None:
        # safetensors is untyped
        handles: list[Any] = [safe_open(file, framework="pt") for file in files]
        self._where = {key: handle for handle in handles for key in handle.keys()}  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def get(self, name: str) -> Tensor:
        """The tensor, still in the file's dtype."""
        tensor: Tensor = self._where[name].get_tensor(name)
        return tensor


def is_native(config: PreTrainedConfig) -> bool:
    """Whether `LlamaLike` computes exactly what this configuration means."""
    rope = getattr(config, "rope_parameters", None) or {}
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    return (
        config.model_type in NATIVE
        and rope.get("rope_type", "default") in _STATIC_ROPE
        and not getattr(config, "use_sliding_window", False)
        and set(layer_types) == {"full_attention"}
        and getattr(config, "hidden_act", "silu") == "silu"
        and not getattr(config, "quantization_config", None)
    )


class LlamaLike:
    """Weights and the forward pass. Load with `load`; all methods run without gradients."""

    def __init__(
        self, config: PreTrainedConfig, checkpoint: Checkpoint, *,
        dtype: torch.dtype, device: torch.device,
    ) -> None:  # fmt: skip
        head_dim = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        self.shape = Shape(
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads or config.num_attention_heads,
            head_dim=head_dim,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            vocab=config.vocab_size,
            context=config.max_position_embeddings,
        )
        self.dtype, self.device, self.eps = dtype, device, float(config.rms_norm_eps)
        # Tensors are packed or cloned: one that stays mapped keeps the whole file resident.
        self._checkpoint = checkpoint
        self.embed = self._take("model.embed_tokens.weight")
        head = "lm_head.weight" if "lm_head.weight" in checkpoint else "model.embed_tokens.weight"
        self.head = Packed(self.embed if "embed" in head else self._take(head))
        self.norm = self._take("model.norm.weight")
        self.layers = [self._layer(index) for index in range(self.shape.layers)]
        del self._checkpoint
        self.rotary = LlamaRotaryEmbedding(config=config).to(device)

    @classmethod
    def load(
        cls, folder: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> LlamaLike:
        """Read a directory; `UsageError` when it holds no safetensors, `ValueError` when the
        architecture is not native (see `is_native`)."""
        files = check_model_dir(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if not is_native(config):
            raise ValueError(f"{config.model_type} is not a Llama-like architecture")
        return cls(config, Checkpoint(files), dtype=dtype, device=torch.device(device))

    def _take(self, name: str) -> Tensor:
        return self._checkpoint.get(name).to(device=self.device, dtype=self.dtype, copy=True)

    def _fuse(self, prefix: str, names: Sequence[str]) -> Packed:
        weight = torch.cat([self._take(f"{prefix}.{name}.weight") for name in names])
        present = [f"{prefix}.{name}.bias" in self._checkpoint for name in names]
        if not any(present):
            return Packed(weight)
        return Packed(weight, torch.cat([self._take(f"{prefix}.{name}.bias") for name in names]))

    def _layer(self, index: int) -> Layer:
        at = f"model.layers.{index}"
        attn = f"{at}.self_attn"
        normed = f"{attn}.q_norm.weight" in self._checkpoint
        return Layer(
            norm1=self._take(f"{at}.input_layernorm.weight"),
            norm2=self._take(f"{at}.post_attention_layernorm.weight"),
            qkv=self._fuse(attn, ("q_proj", "k_proj", "v_proj")),
            o=self._fuse(attn, ("o_proj",)),
            gate_up=self._fuse(f"{at}.mlp", ("gate_proj", "up_proj")),
            down=self._fuse(f"{at}.mlp", ("down_proj",)),
            q_norm=self._take(f"{attn}.q_norm.weight") if normed else None,
            k_norm=self._take(f"{attn}.k_norm.weight") if normed else None,
        )

    def forward(
        self, tokens: Tensor, positions: Tensor, attend: Attend, deltas: Deltas | None = None
    ) -> Tensor:
        """tokens and positions [N] -> normalised last hidden states [N, hidden]."""
        shape = self.shape
        x = F.embedding(tokens, self.embed)
        cos, sin = self._angles(x, positions)
        q_width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        for index, layer in enumerate(self.layers):
            h = self._rms(x, layer.norm1)
            qkv = layer.qkv(h)
            if deltas is not None:
                deltas.add(qkv, h, index, "qkv")
            qk = qkv[:, : q_width + kv_width].unflatten(1, (-1, shape.head_dim))
            if layer.q_norm is not None and layer.k_norm is not None:
                qk = torch.cat(
                    (
                        self._rms(qk[:, : shape.heads], layer.q_norm),
                        self._rms(qk[:, shape.heads :], layer.k_norm),
                    ),
                    1,
                )
            qk = _rotate(qk, cos, sin)
            v = qkv[:, q_width + kv_width :].unflatten(1, (-1, shape.head_dim))
            mixed = attend(index, qk[:, : shape.heads], qk[:, shape.heads :], v)
            out = layer.o(mixed)
            if deltas is not None:
                deltas.add(out, mixed, index, "o")
            x = x + out
            x = x + self._mlp(x, layer, index, deltas)
        return self._rms(x, self.norm)

    def _mlp(self, x: Tensor, layer: Layer, index: int, deltas: Deltas | None) -> Tensor:
        h = self._rms(x, layer.norm2)
        both = layer.gate_up(h)
        if deltas is not None:
            deltas.add(both, h, index, "gate_up")
        gate, up = both.chunk(2, dim=1)
        h = F.silu(gate) * up
        out = layer.down(h)
        if deltas is not None:
            deltas.add(out, h, index, "down")
        return out

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)

    def _angles(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.rotary(x, positions[None])
        half = self.shape.head_dim // 2
        return cos[0, :, None, :half], sin[0, :, None, :half]

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [M, hidden] -> logits [M, vocab] in fp32."""
        return self.head(hidden).float()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
