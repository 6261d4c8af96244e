"""Mathematical equality by `math-verify` (sympy): imported only in a worker, for it can hang.

In: two texts, LaTeX or plain. Out: whether they are equal, or `None` when `expected` says nothing
mathematical.
"""

from __future__ import annotations

from typing import Any

from math_verify import parse, verify

_MARKS = ("$", "\\(", "\\[", "\\boxed", "\\begin")


def equal(expected: str, answer: str) -> bool | None:
    """Whether `answer` is `expected` in another form. The library's own time limits are off: they
    are alarms, and the worker's alarm guards the whole call."""
    gold = _parsed(expected)
    if not gold:
        return None
    return bool(verify(gold, _parsed(answer), timeout_seconds=None))


def _parsed(text: str) -> Any:
    if "\\" in text and not any(mark in text for mark in _MARKS):
        text = f"${text}$"  # the library looks for LaTeX between marks only
    return parse(text, parsing_timeout=None)
