"""A causal language model of a few thousand weights, its tokenizer, and rows sampled from it."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agentloop.records import Row, Sampling

VOCABULARY = 24
TEMPERATURE = 0.8


def llama(dtype: torch.dtype = torch.float32, seed: int = 7) -> Any:
    """Two layers, width 16; the weights are large enough for distributions that are not flat."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
        initializer_range=0.3, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype)
    if dtype == torch.float64:
        _exact(model)
    return model


def _exact(model: Any) -> None:
    """Norms and rotations, which the library computes in float32 whatever the weights are."""
    width = model.config.hidden_size
    layers = [*model.model.layers]
    for layer in layers:
        layer.input_layernorm = nn.RMSNorm(width, model.config.rms_norm_eps, dtype=torch.float64)
        layer.post_attention_layernorm = nn.RMSNorm(
            width, model.config.rms_norm_eps, dtype=torch.float64
        )
    model.model.norm = nn.RMSNorm(width, model.config.rms_norm_eps, dtype=torch.float64)
    model.model.rotary_emb = _Rotary(model.model.rotary_emb.inv_freq)


class _Rotary(nn.Module):
    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.frequencies = frequencies.double()

    def forward(self, _: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].double() * self.frequencies
        both = torch.cat([angles, angles], dim=-1)
        return both.cos(), both.sin()


def words() -> PreTrainedTokenizerFast:
    """A word for each id."""
    vocabulary = {f"w{at}": at for at in range(VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="w2")),
        pad_token="w0",
        eos_token="w1",
        unk_token="w2",
    )


def saved(directory: Path) -> Path:
    """The model and its tokenizer as a directory."""
    llama().save_pretrained(directory)
    words().save_pretrained(directory)
    return directory


def log_probs(model: Any, ids: list[int], temperature: float = TEMPERATURE) -> Tensor:
    """Of every token but the first, (tokens - 1), by the plain formula."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    logp = (logits / temperature).log_softmax(-1)
    return logp.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def episode(model: Any, prompt: list[int], chance: torch.Generator) -> tuple[list[int], list[bool]]:
    """Two sampled turns with three tokens of a tool between them; the lengths are drawn."""
    ids, sampled = list(prompt), [False] * len(prompt)
    for turn in range(2):
        for _ in range(int(torch.randint(2, 7, (1,), generator=chance))):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            odds = (logits.double() / TEMPERATURE).softmax(-1)
            ids.append(int(torch.multinomial(odds, 1, generator=chance)))
            sampled.append(True)
        if turn == 0:
            ids += [5, int(torch.randint(6, VOCABULARY, (1,), generator=chance)), 7]
            sampled += [False] * 3
    return ids, sampled


def prompts(groups: int, step: int = 5) -> list[list[int]]:
    """Of different lengths, `step` apart; the longest is of twenty tokens."""
    chance = torch.Generator().manual_seed(0)
    return [
        torch.randint(2, VOCABULARY, (20 - step * (at % 3),), generator=chance).tolist()
        for at in range(groups)
    ]


def rows(model: Any, groups: int = 2, size: int = 4, *, seed: int = 0, step: int = 5) -> list[Row]:
    """Groups of episodes of `model` with their log-probs, rewards in quarters, centred credit."""
    chance = torch.Generator().manual_seed(seed)
    found = []
    for group, prompt in enumerate(prompts(groups, step)):
        rewards = [(at + group) % 4 / 4 for at in range(size)]
        mean = math.fsum(rewards) / size
        for at, reward in enumerate(rewards):
            ids, sampled = episode(model, prompt, chance)
            with torch.no_grad():
                old = [0.0, *log_probs(model, ids).tolist()]
            found.append(_row(f"g{group}-{at}", ids, sampled, old, reward, reward - mean))
    return found


def _row(
    name: str, ids: list[int], flags: list[bool], old: list[float], reward: float, worth: float
) -> Row:
    cuts = [0, *(at for at in range(1, len(ids)) if flags[at] != flags[at - 1]), len(ids)]
    spans = [(a, b, flags[a]) for a, b in pairwise(cuts)]
    return Row(
        episode=name,
        prompt=(),
        segments=tuple(tuple(ids[a:b]) for a, b, _ in spans),
        sampled=tuple(flag for *_, flag in spans),
        logprobs=tuple(tuple(old[a:b]) if flag else () for a, b, flag in spans),
        advantages=tuple(worth if flag else 0.0 for *_, flag in spans),
        group=name.split("-")[0],
        reward=reward,
        share=0.25,
        label=reward >= 0.5,
        sampling=Sampling(temperature=TEMPERATURE),
    )
