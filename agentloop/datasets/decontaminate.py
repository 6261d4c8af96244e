"""Leave out training texts that repeat a held-out one, also where a few words were changed.

In: texts, and those they must not repeat. Out: which repeat which. Both conditions of Yang et al.
2024 (Qwen2.5-Math, section 2) must hold: a run of 13 words in common, and a longest common
subsequence of more than 0.6 of the shorter text. Words are compared without case and punctuation;
of a text of fewer than 13 words the whole is the run.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

from pydantic import Field

from agentloop.ports import part

_WORD = re.compile(r"\w+")
Words = tuple[str, ...]


@part
class Decontaminate:
    """What counts as a repetition of a held-out text."""

    run: Annotated[int, Field(ge=1)] = 13
    """Words in a row that both have."""
    ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.6
    """More of the shorter text than this is found in the other, in order."""

    def repeated(self, texts: Iterable[str], held_out: Sequence[str]) -> list[int | None]:
        """For each text the index of the first held-out one that it repeats, or `None`."""
        known = [words(text) for text in held_out]
        runs: dict[Words, set[int]] = defaultdict(set)
        shorter = defaultdict[int, set[int]](set)
        for at, one in enumerate(known):
            for run in _runs(one, self.run):
                runs[run].add(at)
            if 0 < len(one) < self.run:
                shorter[len(one)].add(at)
        return [self._first(words(text), known, runs, sorted(shorter)) for text in texts]

    def _first(
        self, text: Words, known: Sequence[Words], runs: dict[Words, set[int]], sizes: list[int]
    ) -> int | None:
        found: set[int] = set()
        for size in (*sizes, self.run):
            for run in _runs(text, size):
                found |= runs.get(run, set())
        if 0 < len(text) < self.run:  # all of it may stand in a longer one
            found.update(at for at, one in enumerate(known) if text in _runs(one, len(text)))
        for at in sorted(found):
            if common(text, known[at]) > self.ratio * min(len(text), len(known[at])):
                return at
        return None


def words(text: str) -> Words:
    """The words of a text as they are compared."""
    return tuple(_WORD.findall(text.casefold()))


def common(one: Sequence[str], two: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time in one integer (Hyyrö
    2004)."""
    places: dict[str, int] = defaultdict(int)
    for at, word in enumerate(one):
        places[word] |= 1 << at
    whole = (1 << len(one)) - 1
    row = whole
    for word in two:
        hit = row & places.get(word, 0)
        row = ((row + hit) | (row - hit)) & whole
    return len(one) - row.bit_count()


def _runs(text: Words, size: int) -> Iterator[Words]:
    """Every run of `size` words; of a shorter text the whole."""
    size = min(size, len(text))
    if size:
        yield from (text[at : at + size] for at in range(len(text) - size + 1))
