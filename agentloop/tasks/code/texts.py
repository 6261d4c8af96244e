"""Families over texts, Unicode included: letters, runs of characters, words, durations."""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby
from random import Random

from agentloop.tasks.code.problem import Problem, words

_VOWELS = "aeiouAEIOU"
_SAMPLE = "aAbBczZéÉñß жЖ你好 🎉 xyz XYZ io UE 019 -_.,"


def shifting(rng: Random) -> Problem:
    """A substitution cipher with one shift for vowels and another for the rest."""
    vowel, other = rng.sample(range(1, 26), 2)

    def one(letter: str) -> str:
        start = 97 if "a" <= letter <= "z" else 65 if "A" <= letter <= "Z" else None
        if start is None:
            return letter
        return chr((ord(letter) - start + (vowel if letter in _VOWELS else other)) % 26 + start)

    return Problem(
        signature="shift(text: str) -> str",
        statement=f"Move each of the letters a, e, i, o, u in `text` {vowel} places on in the "
        f"alphabet from a to z, and each other letter from a to z {other} places; after z comes a. "
        "A capital letter from A to Z is moved in the same way and stays a capital. All other "
        "characters, letters such as é included, stay as they are.",
        solve=lambda text: "".join(map(one, text)),
        inputs=lambda rng: ["".join(rng.choices(_SAMPLE, k=rng.randint(1, 30)))],
        edges=([""], ["zZ aA"], ["Žluťoučký kůň 你好 🎉"]),
        settings={"vowel": vowel, "other": other},
    )


def runs(rng: Random) -> Problem:
    """Run lengths, for long runs alone."""
    least, mark = rng.randint(2, 5), rng.choice("#*:~^|=+@%&!")
    count_first = rng.random() < 0.5

    def solve(text: str) -> str:
        made = ""
        for letter, group in groupby(text):
            many = len(list(group))
            short = f"{many}{mark}{letter}" if count_first else f"{letter}{mark}{many}"
            made += short if many >= least else letter * many
        return made

    order = f"its length, `{mark}` and the character" if count_first else (
        f"the character, `{mark}` and its length"
    )  # fmt: skip
    return Problem(
        signature="shorten(text: str) -> str",
        statement=f"Return `text` with each run of {least} or more equal characters, as long as "
        f"it is, replaced by {order}. Capitals are other characters than small letters.",
        solve=solve,
        inputs=lambda rng: [
            "".join(rng.choice("aAb é🎉") * rng.randint(1, 8) for _ in range(rng.randint(1, 7)))
        ],
        edges=([""], ["a" * least], ["b" * (least - 1)], ["é" * 12 + "É"]),
        settings={
            "least": least, "mark": mark,
            "form": "{n}" + mark + "{c}" if count_first else "{c}" + mark + "{n}",
        },
    )  # fmt: skip


def word_counts(rng: Random) -> Problem:
    """How often words occur, whatever their case."""
    shortest, least, without = rng.randint(1, 4), rng.randint(1, 3), rng.choice("abcdeilnorstu")

    def solve(text: str) -> dict[str, int]:
        spaced = "".join(one if one.isalpha() else " " for one in text)
        found = Counter(spaced.casefold().split())
        return {
            word: many
            for word, many in found.items()
            if len(word) >= shortest and many >= least and without not in word
        }

    def text(rng: Random) -> str:
        pool = words(rng, 5, "abcdeéilnorstuß")
        said = [rng.choice((str.lower, str.upper, str.title))(rng.choice(pool)) for _ in range(14)]
        return "".join(word + rng.choice((" ", ", ", "-", "3", "\n", "! ")) for word in said)

    return Problem(
        signature="count_words(text: str) -> dict[str, int]",
        statement="A word is a longest run of letters (`str.isalpha`) in `text`; words are compared"
        " after `str.casefold`. Return a dict from each word, case-folded, to how often it occurs. "
        f"Leave out words of fewer than {shortest} letters, words that occur fewer than {least} "
        f"times, and words with the letter {without} (count and compare letters after folding).",
        solve=solve,
        inputs=lambda rng: [text(rng)],
        edges=([""], ["Straße STRASSE straße, strasse"], ["É é É x X 12x"]),
        settings={"shortest": shortest, "least": least, "without": without},
    )


def durations(rng: Random) -> Problem:
    """Read a text of numbers and units; anything else is an error."""
    names = rng.sample("bdhkmqsvwz", 3)
    factors = sorted(rng.sample(range(2, 90), 2), reverse=True)
    units = dict(zip(names, [factors[0] * factors[1], factors[1], 1], strict=True))

    def solve(text: str) -> int:
        pattern = "".join(f"(?:([0-9]+){name})?" for name in names)
        found = re.fullmatch(pattern, text)
        if not text or found is None:
            raise ValueError(text)
        return sum(int(n or 0) * units[name] for n, name in zip(found.groups(), names, strict=True))

    def text(rng: Random) -> str:
        parts = [f"{rng.randint(0, 300)}{name}" for name in names if rng.random() < 0.7]
        if rng.random() < 0.3:
            parts.insert(0, rng.choice(("-", " ", f"3{names[2]}", "x", "1.5" + names[0], "7")))
        return "".join(parts)

    first, second, third = names
    return Problem(
        signature="read_duration(text: str) -> int",
        statement="`text` is one or more parts, each of decimal digits and a unit, each unit at "
        f"most once, in the order {first}, {second}, {third}: such as 3{first}20{third}. A {first} "
        f"is {units[first]}, a {second} is {units[second]} and a {third} is 1. Return the sum. "
        "Raise ValueError for any other text: an empty one, spaces, signs, other units, another "
        "order, a number without a unit or a unit without a number.",
        solve=solve,
        inputs=lambda rng: [text(rng)],
        edges=([""], [f"1{third}1{first}"], [f"{'9' * 30}{first}1{third}"], [second]),
        settings={"units": {**units}},
    )


FAMILIES = {
    "code_shifting": shifting,
    "code_runs": runs,
    "code_word_counts": word_counts,
    "code_durations": durations,
}
