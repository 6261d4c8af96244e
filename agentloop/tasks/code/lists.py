"""Families over lists and dicts: count, slide a window, weigh a tree, cut into chunks, group."""

from __future__ import annotations

from itertools import groupby
from random import Random
from typing import Any

from agentloop.records import Json
from agentloop.tasks.code.problem import Problem, numbers, words

_LETTERS = "aábcčdeéöüßλж"


def counting(rng: Random) -> Problem:
    """How many numbers are beyond a limit and divisible."""
    limit, divisor = rng.randint(-20, 20), rng.randint(2, 9)
    greater = rng.random() < 0.5

    def solve(values: list[int]) -> int:
        return sum((n > limit if greater else n < limit) and n % divisor == 0 for n in values)

    return Problem(
        signature="count_numbers(numbers: list[int]) -> int",
        statement=f"Return how many of `numbers` are {'greater' if greater else 'less'} than "
        f"{limit} and divisible by {divisor}.",
        solve=solve,
        inputs=lambda rng: [[*numbers(rng, 30)]],
        edges=([[]], [[limit]], [[0, divisor * 50, -divisor * 50, divisor * 50]]),
        settings={"limit": limit, "divisor": divisor, "sign": ">" if greater else "<"},
    )


def windows(rng: Random) -> Problem:
    """The best sum of neighbours under a cap."""
    width, cap = rng.randint(2, 6), rng.randint(10, 60)
    largest = rng.random() < 0.5

    def solve(values: list[int]) -> int | None:
        sums = [sum(values[at : at + width]) for at in range(len(values) - width + 1)]
        fit = [one for one in sums if abs(one) <= cap]
        return (max(fit) if largest else min(fit)) if fit else None

    return Problem(
        signature="best_window(numbers: list[int]) -> int | None",
        statement=f"Add up every {width} neighbouring numbers of `numbers`. Return the "
        f"{'largest' if largest else 'smallest'} of these sums that is from {-cap} to {cap}, or "
        "None if there is none.",
        solve=solve,
        inputs=lambda rng: [[*numbers(rng, 14, 25)]],
        edges=([[]], [[1] * width], [[cap] * width]),
        settings={"width": width, "cap": cap, "best": "max" if largest else "min"},
    )


def nested(rng: Random) -> Problem:
    """Numbers of a tree of lists, weighed by their depth."""
    base, cut = rng.randint(2, 5), rng.randint(-8, 8)
    power = rng.random() < 0.5

    def solve(tree: list[Any], depth: int = 1) -> int:
        weight = base**depth if power else base * depth
        return sum(
            solve(one, depth + 1) if isinstance(one, list) else one * weight if one >= cut else 0
            for one in tree
        )

    rule = f"{base} to the power of its depth" if power else f"{base} times its depth"
    return Problem(
        signature="weigh(tree: list) -> int",
        statement="`tree` is a list of whole numbers and of further such lists. A number directly "
        "in `tree` has depth 1, one in a list within it depth 2, and so on. Return the sum of all "
        f"numbers that are at least {cut}, each multiplied by {rule}.",
        solve=lambda tree: solve(tree),
        inputs=lambda rng: [_tree(rng, 4)],
        edges=([[]], [[[], [[]]]], [[1, [2, [3, [4, [5, [6]]]]]]]),
        settings={"base": base, "cut": cut, "weight": "**" if power else "*"},
    )


def _tree(rng: Random, depth: int) -> list[Json]:
    return [
        _tree(rng, depth - 1) if depth > 1 and rng.random() < 0.4 else rng.randint(-12, 12)
        for _ in range(rng.randint(1, 5))
    ]


def chunks(rng: Random) -> Problem:
    """Pieces of a list, some reversed, the light ones left out."""
    size, every, least = rng.randint(2, 6), rng.randint(2, 4), rng.randint(-15, 15)

    def solve(values: list[int]) -> list[list[int]]:
        cut = [values[at : at + size] for at in range(0, len(values), size)]
        turned = [one[::-1] if at % every == 0 else one for at, one in enumerate(cut, start=1)]
        return [one for one in turned if sum(one) >= least]

    return Problem(
        signature="chunks(numbers: list[int]) -> list[list[int]]",
        statement=f"Cut `numbers` into chunks of {size}, in order; the last may be shorter. Number "
        f"the chunks from 1 and reverse the numbers within those whose number is a multiple of "
        f"{every}. Return the chunks whose sum is at least {least}.",
        solve=solve,
        inputs=lambda rng: [[*numbers(rng, 26, 20)]],
        edges=([[]], [[20] * (size * every)], [list(range(size * every + 1))]),
        settings={"size": size, "every": every, "least": least},
    )


_KEYS = {
    "first letter": "word[0]",
    "last letter": "word[-1]",
    "length, written as text (such as '3')": "str(len(word))",
}


def grouping(rng: Random) -> Problem:
    """A dict of sorted words."""
    what = rng.choice(sorted(_KEYS))
    shortest, least, most = rng.randint(1, 4), rng.randint(1, 3), rng.randint(2, 5)
    code = _KEYS[what]

    def key(word: str) -> str:
        return str(len(word)) if "len" in code else word[0] if code == "word[0]" else word[-1]

    def solve(given: list[str]) -> dict[str, list[str]]:
        kept = sorted({one for one in given if len(one) >= shortest}, key=lambda w: (key(w), w))
        found = {name: list(group) for name, group in groupby(kept, key)}
        return {name: group[:most] for name, group in found.items() if len(group) >= least}

    return Problem(
        signature="group_words(words: list[str]) -> dict[str, list[str]]",
        statement=f"Group the different words of `words` that have at least {shortest} characters "
        f"by their {what}. Return a dict from this to the words of the group, sorted as Python "
        f"sorts texts, only the first {most} of each group. Leave out groups that had fewer than "
        f"{least} different words.",
        solve=solve,
        inputs=lambda rng: [[*words(rng, rng.randint(2, 16), rng.choice((_LETTERS, "abcd")))]],
        edges=([[]], [["ab", "ab", "Ab", "ábc", "🎉🎉🎉🎉"]], [["aaaa", "aaab", "aaac", "aaad"]]),
        settings={"key": code, "shortest": shortest, "least": least, "most": most},
    )


FAMILIES = {
    "code_counting": counting,
    "code_windows": windows,
    "code_nested": nested,
    "code_chunks": chunks,
    "code_grouping": grouping,
}
