"""Signs of degenerate text, and a bonus for searching that does not know what is right.

In: token ids or words, a text, lengths. Out: numbers and the names of what was found; no episode,
no torch. The decision worth knowing: correctness and exploration are returned side by side, never
added here, so that credit can normalise each by itself.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence

from agentloop.errors import UsageError
from agentloop.ports import part

_UNREADABLE = {"Cc", "Cf", "Cn", "Co", "Cs"}
"""Unicode categories that no answer is written in: control, format, unassigned, private, half."""
_EAST_ASIAN = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC"}


@part
class Patterns:
    """What counts as degenerate. `ngram` words or tokens repeated `times` times are a loop (20 and
    10 for long chains of thought; short answers want less), more than `longest` tokens are too
    long, and more than `foreign` of the letters in another script than most, or `garbled` of all
    characters unreadable, is a mix."""

    ngram: int = 8
    times: int = 4
    longest: int | None = None
    foreign: float = 0.1
    garbled: float = 0.01

    def found(self, text: str, tokens: Sequence[Hashable] | None = None) -> tuple[str, ...]:
        """Which of `loop`, `length` and `charset` the text shows. `tokens` (default: its words)
        are what is counted."""
        counted = text.split() if tokens is None else tokens
        signs = {
            "loop": loops(counted, self.ngram, self.times),
            "length": self.longest is not None and len(counted) > self.longest,
            "charset": foreign_share(text) > self.foreign or unreadable_share(text) > self.garbled,
        }
        return tuple(name for name, shown in signs.items() if shown)

    def reward(self, value: float, text: str, tokens: Sequence[Hashable] | None = None) -> float:
        """`value`, or -1 for a degenerate text, however right it is."""
        return -1.0 if self.found(text, tokens) else value


def loops(tokens: Sequence[Hashable], ngram: int, times: int) -> bool:
    """Whether some run of `ngram` tokens stands at least `times` times in `tokens`."""
    if ngram < 1 or times < 2:
        raise UsageError(f"a loop is of 1 token or more, 2 times or more, not {ngram} and {times}")
    runs = Counter(tuple(tokens[at : at + ngram]) for at in range(len(tokens) - ngram + 1))
    return max(runs.values(), default=0) >= times


def distinct(tokens: Sequence[Hashable], ngram: int = 4) -> int:
    """How many different runs of `ngram` tokens there are: a length that padding does not raise."""
    return len({tuple(tokens[at : at + ngram]) for at in range(len(tokens) - ngram + 1)})


def foreign_share(text: str) -> float:
    """Share of the letters that are not of the most frequent script, in [0, 1]; East Asian scripts
    count as one. 0 without a letter."""
    scripts = Counter(_script(letter) for letter in text if letter.isalpha())
    total = scripts.total()
    return 1 - max(scripts.values()) / total if total else 0.0


def unreadable_share(text: str) -> float:
    """Share of the characters that nobody can read: replacement characters, control codes."""
    if not text:
        return 0.0
    bad = sum(
        letter == "\ufffd"
        or (unicodedata.category(letter) in _UNREADABLE and letter not in "\n\t\r")
        for letter in text
    )
    return bad / len(text)


def _script(letter: str) -> str:
    """The first word of the letter's Unicode name, which names its script."""
    first = unicodedata.name(letter, "UNKNOWN").split(maxsplit=1)[0]
    return "EAST-ASIAN" if first in _EAST_ASIAN else first


def searching(
    right: bool | None, length: int, cost: float = 1000.0, longest: int | None = None
) -> dict[str, float]:
    """`correct` (1, 0, or -0.5 without an answer) and `exploration`, -`cost` / `length`.

    `length` is what was written before the answer; at 0 it counts as 1, so an answer without any
    thought is the worst there is, and beyond `longest` more does not pay. Ye et al. 2025 (RLSP),
    with 1000 for answers of a thousand tokens; scale it with the usual length.
    """
    if length < 0 or cost < 0:
        raise UsageError(f"a length of {length} and a cost of {cost}; both are 0 or more")
    counted = max(1, length if longest is None else min(length, longest))
    correct = -0.5 if right is None else float(right)
    return {"correct": correct, "exploration": -cost / counted}


def with_effort(reward: float, effort: float | None, weight: float = 0.2) -> dict[str, float]:
    """`value`, the mean of a reward and a judge's grade of the effort in [0, 1], `weight` on the
    latter; `judge_failed` is 1 where there is no usable grade, which then counts as 0.5."""
    if not 0 <= weight <= 1:
        raise UsageError(f"the weight of the effort is {weight}; give a number from 0 to 1")
    usable = effort is not None and math.isfinite(effort) and 0 <= effort <= 1
    grade = effort if usable and effort is not None else 0.5
    value = (1 - weight) * reward + weight * grade
    return {"value": value, "effort": grade, "judge_failed": float(not usable)}
