"""What a family of code tasks makes: a statement, a reference and inputs, all from one seed.

In: a `random.Random`. Out: a `Problem`. The decision worth knowing: the reference is a function of
ours and not a text, so nothing that could be shown to a model or copied into a sandbox holds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from agentloop.records import Json


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One function to write."""

    signature: str
    """`name(argument: type, ...) -> type`."""
    statement: str
    """What it returns, whole: nobody can be expected to guess a rule from examples."""
    solve: Callable[..., Any]
    """The reference: JSON in, JSON out; a `ValueError` of it is what the statement asks for."""
    inputs: Callable[[Random], list[Json]]
    """The arguments of one case."""
    edges: tuple[list[Json], ...] = ()
    """Arguments that are always among the hidden cases."""
    tolerance: float = 0.0
    """Of floats, relative above 1 and absolute below."""
    settings: dict[str, Json] = field(default_factory=dict)
    """What the statement was filled in with."""

    @property
    def function(self) -> str:
        """The name to be defined."""
        return self.signature.partition("(")[0]


Family = Callable[[Random], Problem]
"""Makes a problem; the same for the same state of the generator."""


def words(rng: Random, many: int, letters: str) -> list[str]:
    """`many` words of 1 to 7 of `letters`."""
    return ["".join(rng.choices(letters, k=rng.randint(1, 7))) for _ in range(many)]


def numbers(rng: Random, most: int, size: int = 50) -> list[int]:
    """Up to `most` whole numbers between `-size` and `size`."""
    return [rng.randint(-size, size) for _ in range(rng.randint(0, most))]
