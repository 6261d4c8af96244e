"""Policies small enough to learn in seconds: a table (or linear) policy and a tiny transformer.

In: token ids. Out: sampled tokens with their log-probs, differentiable log-probs, and optimizer
steps on any scalar. Both satisfy one protocol, so an experiment runs the shipped losses, credit
and buffers on either. The decision worth knowing: everything is seeded by the policy's own
generator, so two policies made alike learn alike, whatever else draws random numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from agentloop.errors import UsageError

Optimizer = Literal["adam", "sgd"]
Context = Callable[[Tensor], Tensor]
"""Which row of a table a prefix (rows x time) belongs to: (rows) int64."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """`tokens` (rows x prompt + length) begin with the prompts; `logp` (rows x length) is detached
    and under the distribution the tokens were sampled from."""

    tokens: Tensor
    logp: Tensor


@dataclass(frozen=True, slots=True)
class Learning:
    """How `step` updates: the optimizer, its rate, the largest gradient norm (`None`: any)."""

    optimizer: Optimizer = "adam"
    rate: float = 1e-2
    clip: float | None = None


@dataclass(frozen=True, slots=True)
class TinySize:
    """The transformer's size; the default with 32 tokens has about 0.4 million parameters."""

    vocabulary: int
    longest: int = 64
    width: int = 128
    layers: int = 2
    heads: int = 4


@runtime_checkable
class ToyPolicy(Protocol):
    """What an experiment needs of a policy."""

    def sample(self, prompts: Tensor, length: int, temperature: float = 1.0) -> Drawn:
        """Continue each prompt (rows x width, int64) by `length` tokens."""
        ...

    def logits(self, tokens: Tensor, start: int) -> Tensor:
        """What predicts `tokens[:, start:]`, with gradient: (rows x length x vocabulary)."""
        ...

    def logp(self, tokens: Tensor, start: int) -> Tensor:
        """Log-probs of `tokens[:, start:]` at temperature 1, with gradient: (rows x length)."""
        ...

    def step(self, loss: Tensor) -> float:
        """One optimizer step down `loss`; the gradient's norm before clipping."""
        ...

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the weights (an anchor, a start to return to)."""
        ...

    def restore(self, weights: dict[str, Tensor]) -> None:
        """Take the weights of a snapshot; the optimizer starts anew."""
        ...


class _Toy(nn.Module):
    """What both policies share: sampling's randomness, log-probs, steps, snapshots."""

    def __init__(self, learning: Learning, seed: int) -> None:
        super().__init__()
        self.learning = learning
        self.generator = torch.Generator().manual_seed(seed)

    def logits(self, tokens: Tensor, start: int) -> Tensor:
        """See `ToyPolicy.logits`."""
        raise TypeError("a policy says how it makes logits")

    def logp(self, tokens: Tensor, start: int) -> Tensor:
        """See `ToyPolicy.logp`."""
        return chosen(self.logits(tokens, start), tokens[:, start:])

    def step(self, loss: Tensor) -> float:
        """See `ToyPolicy.step`. Raises `UsageError` for a loss that is not finite."""
        if not bool(torch.isfinite(loss)):
            raise UsageError(f"the loss is {loss.item()}; lower the learning rate")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters(), self.learning.clip or float("inf"))
        self._optimizer.step()
        return float(norm)

    def snapshot(self) -> dict[str, Tensor]:
        """See `ToyPolicy.snapshot`."""
        return {name: weight.detach().clone() for name, weight in self.state_dict().items()}

    def restore(self, weights: dict[str, Tensor]) -> None:
        """See `ToyPolicy.restore`."""
        self.load_state_dict(weights)
        self._start()

    def _start(self) -> None:
        kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        self._optimizer = kinds[self.learning.optimizer](self.parameters(), lr=self.learning.rate)

    def _draw(self, logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """One token per row of (rows x vocabulary), and its log-prob."""
        if not temperature > 0:
            raise UsageError(f"the temperature is {temperature}; give a positive number")
        logp = (logits / temperature).log_softmax(-1)
        token = torch.multinomial(logp.exp(), 1, generator=self.generator)
        return token, logp.gather(1, token)


class TabularPolicy(_Toy):
    """Logits by context: `table` (contexts x vocabulary) as it starts, or weights (n x vocabulary)
    of `features` (contexts x n), which generalise over contexts that look alike.

    `context` maps a prefix to its row; by default the last token is the row, so a prompt of one
    token may be a state, a task or a bandit.
    """

    def __init__(
        self,
        table: Tensor,
        *,
        learning: Learning = Learning("sgd", 1.0),
        context: Context | None = None,
        features: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(learning, seed)
        if features is not None and features.shape[1] != table.shape[0]:
            raise UsageError(f"{features.shape[1]} features need as many rows of weights")
        self.context = context or (lambda prefix: prefix[:, -1])
        self.features = features
        self.table = nn.Parameter(table.detach().clone())
        self._start()

    def at(self, contexts: Tensor) -> Tensor:
        """Logits of table rows of any shape, with gradient: (... x vocabulary)."""
        return (
            self.table[contexts] if self.features is None else self.features[contexts] @ self.table
        )

    def logits(self, tokens: Tensor, start: int) -> Tensor:
        """See `ToyPolicy.logits`."""
        ends = range(start, tokens.shape[1])
        return self.at(torch.stack([self.context(tokens[:, :end]) for end in ends], dim=1))

    def sample(self, prompts: Tensor, length: int, temperature: float = 1.0) -> Drawn:
        """See `ToyPolicy.sample`."""
        tokens, logps = prompts, []
        for _ in range(length):
            token, logp = self._draw(self.at(self.context(tokens)).detach(), temperature)
            tokens = torch.cat([tokens, token], dim=1)
            logps.append(logp)
        return Drawn(tokens, torch.cat(logps, dim=1))


def whole_prefix(vocabulary: int, length: int) -> tuple[Context, Callable[[int], int]]:
    """The context in which every (prompt, prefix) has a row of its own, for prompts of one id and
    up to `length` sampled tokens; and how many rows that takes for a number of prompts."""
    offsets = [sum(vocabulary**t for t in range(n)) for n in range(length + 1)]

    def context(prefix: Tensor) -> Tensor:
        sampled = prefix.shape[1] - 1
        row = torch.zeros_like(prefix[:, 0])
        for place in range(1, sampled + 1):
            row = row * vocabulary + prefix[:, place]
        return prefix[:, 0] * offsets[length] + offsets[sampled] + row

    return context, lambda prompts: prompts * offsets[length]


class TinyLM(_Toy):
    """A causal transformer (pre-norm, learned positions) in float32, deterministic for its seed.

    Prompts of one call have one length; pad them on the left with an id of their own.
    """

    def __init__(
        self, size: TinySize, *, learning: Learning = Learning("adam", 1e-3), seed: int = 0
    ) -> None:
        super().__init__(learning, seed)
        self.size = size
        self.embed = nn.Embedding(size.vocabulary, size.width)
        self.places = nn.Embedding(size.longest, size.width)
        self.blocks = nn.ModuleList(_Block(size.width, size.heads) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                nn.init.normal_(layer.weight, std=size.width**-0.5 / 2, generator=self.generator)
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)
        self._start()

    def hidden(self, tokens: Tensor) -> Tensor:
        """Last hidden states with gradient, (rows x time x width): the input of a value head."""
        return self._run(tokens, _Memory())

    def logits(self, tokens: Tensor, start: int) -> Tensor:
        """See `ToyPolicy.logits`."""
        states: Tensor = self.head(self.hidden(tokens[:, :-1])[:, start - 1 :])
        return states

    def sample(self, prompts: Tensor, length: int, temperature: float = 1.0) -> Drawn:
        """See `ToyPolicy.sample`; each token is computed once (keys and values are kept)."""
        memory, tokens, logps = _Memory(), prompts, []
        fresh = prompts
        with torch.no_grad():
            for _ in range(length):
                fresh, logp = self._draw(self.head(self._run(fresh, memory)[:, -1]), temperature)
                tokens = torch.cat([tokens, fresh], dim=1)
                logps.append(logp)
        return Drawn(tokens, torch.cat(logps, dim=1))

    def _run(self, tokens: Tensor, memory: _Memory) -> Tensor:
        end = memory.length + tokens.shape[1]
        if end > self.size.longest:
            raise UsageError(f"{end} tokens are more than the model's {self.size.longest}")
        states = self.embed(tokens) + self.places.weight[memory.length : end]
        for number, block in enumerate(self.blocks):
            states = block(states, memory, number)
        memory.length = end
        normed: Tensor = self.norm(states)
        return normed


@dataclass(slots=True)
class _Memory:
    """Keys and values of the tokens so far, by block."""

    length: int = 0
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, states: Tensor, memory: _Memory, number: int) -> Tensor:
        """Attend (causally; one token at a time once something is remembered), then the MLP."""
        rows, time, width = states.shape
        parts = self.mix(self.norms[0](states)).view(rows, time, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        if number in memory.kept:
            before = memory.kept[number]
            key, value = torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)
        memory.kept[number] = (key, value)
        seen = scaled_dot_product_attention(query, key, value, is_causal=memory.length == 0)
        states = states + self.out(seen.transpose(1, 2).reshape(rows, time, width))
        grown: Tensor = states + self.down(nn.functional.gelu(self.up(self.norms[1](states))))
        return grown


def chosen(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probs of `tokens` (...) under logits (... x vocabulary)."""
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
