"""Words for a group of prompts: a name, and the form that they share.

Goes in: prompts of one kind (and of others, to tell them apart). Comes out: text that is safe in a
skill's name or description.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Sequence

from agentloop.skills.similarity import mask

_WORD = re.compile(r"[a-z][a-z]+")
_STOP = frozenset(
    _WORD.findall(
        "a an and are as at be by do does for from give given has have how if in into is it its "
        "many more no not of on only or out please so than that the their them there these they "
        "this those to use was we what when where which who will with you your answer final "
        "following find solve task problem result state question compute calculate determine"
    )
)


def characteristic(prompts: Sequence[str], others: Sequence[str], n: int = 3) -> list[str]:
    """Up to `n` words that nearly all `prompts` have and few `others`, in order of appearance."""
    here = [Counter(_WORD.findall(mask(prompt).lower())) for prompt in prompts]
    there = [set(_WORD.findall(mask(prompt).lower())) for prompt in others]
    score = {}
    for word in here[0]:
        share = sum(word in words for words in here) / len(here)
        if share >= 0.8 and word not in _STOP:
            elsewhere = sum(word in words for words in there) / max(len(there), 1)
            score[word] = share - elsewhere
    best = sorted(score, key=lambda word: -score[word])[:n]
    words = [word[:20] for word in here[0] if word in best]
    return words


def unique(name: str, taken: Collection[str]) -> str:
    """`name`, or the first of `name-2`, `name-3` ... that is not taken."""
    number, free = 2, name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def template(prompts: Sequence[str], sample: int = 12) -> str:
    """The words that a sample of the prompts share, in order, with `...` for what differs."""
    shared = prompts[0].split()
    for prompt in prompts[1:sample]:
        words = prompt.split()
        matcher = difflib.SequenceMatcher(None, shared, words, autojunk=False)
        kept: list[str] = []
        at = (0, 0)
        for block in matcher.get_matching_blocks():  # the last one is empty, at both ends
            if (block.a, block.b) != at and kept[-1:] != ["..."]:
                kept.append("...")
            kept += shared[block.a : block.a + block.size]
            at = (block.a + block.size, block.b + block.size)
        shared = kept
    return " ".join(shared)


def shorten(text: str, limit: int) -> str:
    """`text` in at most `limit` characters, an ellipsis at the end when it was cut."""
    return text if len(text) <= limit else f"{text[: limit - 4].rstrip()} ..."
