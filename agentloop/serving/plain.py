"""The decoder for architectures that `model.LlamaLike` does not cover: transformers' own forward.

Same interface as `decode.Decoder`, one request at a time, no shared prefixes and no adapters. The
decision worth knowing: correctness for any causal language model comes first, speed only where the
native forward pass applies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from agentloop.serving.adapters import Adapter
from agentloop.serving.batch import Row
from agentloop.serving.sampling import sample
from agentloop.serving.weights import check_model_dir


class PlainDecoder:
    """One request per `step`, from prompt to end."""

    def __init__(self, folder: Path, *, dtype: torch.dtype, device: str) -> None:
        check_model_dir(folder)
        self.device = torch.device(device)
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, use_safetensors=True,
            local_files_only=True,
        ).to(self.device)  # fmt: skip
        self._model.eval()
        self.context = int(getattr(self._model.config, "max_position_embeddings", 0) or 2048)
        self.vocab = int(self._model.get_input_embeddings().weight.shape[0])
        self.waiting: deque[Row] = deque()

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self.waiting)

    def add(self, row: Row) -> None:
        """Queue a request."""
        self.waiting.append(row)

    def step(self) -> list[Row]:
        """Decode the next request to its end and return it."""
        with torch.inference_mode():
            return self._step()

    def _step(self) -> list[Row]:
        if not self.waiting:
            return []
        row = self.waiting.popleft()
        cache, inputs = None, list(row.prompt)
        while not row.cancelled():
            out = self._model(
                input_ids=torch.tensor([inputs], device=self.device),
                past_key_values=cache, use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            cache = out.past_key_values
            tokens, logprobs = sample(out.logits[:, -1].float(), [row.draw])
            if row.accept(tokens[0], logprobs[0], self.context):
                return [row]
            inputs = tokens
        row.finish = "cancelled"
        return [row]

    def score(self, tokens: Sequence[int], adapter: Adapter | None) -> list[float]:
        """Log-probs of tokens[1:]; see `decode.Decoder.score`."""
        if adapter is not None:
            raise ValueError("this architecture is served without adapters")
        ids = torch.tensor([list(tokens)], device=self.device)
        with torch.inference_mode():
            logprobs = self._model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        out: list[float] = logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()
        return out
