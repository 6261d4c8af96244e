"""The cheap test before any expression: may there be a secret in these bytes?

In: UTF-8 or JSON bytes; out: whether they have one of the marks of a secret's shape, and whether a
run of base64 long enough to hide one. One automaton looks for all of it in one pass, however many
marks there are: the regular expressions of pydantic, which run in linear time over any text. Most
texts have nothing and cost that one call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from pydantic_core import SchemaValidator, core_schema

from agentloop.trajectories.secret_shapes import marks

RUN = 24
"""Characters of base64 that hold 18 bytes: the shortest secret with a shape of its own."""
_CODED = f"[A-Za-z0-9+/]{{{RUN - 2}}}"
"""Of such a run most: base64 for addresses has two more letters, which names and flags have too."""
_ADDRESS = r"://[\x00-\x7f--\t-\r /@\"'\\<>]*@"
"""An address with credentials."""
_BEHIND = r"(?:^|[\x00-\x7f--A-Za-z0-9]|\\[\x00-\x7f]{0,5})"
"""What stands before a key's `sk`, so that `task-0` and `asked` are none: no letter or digit, other
than one that may be part of an escape."""
_ASCII = bytes(range(128)) + b"\x7f" * 128
"""Marks and runs are of ASCII; of other letters it only counts that there are some."""


def suspicious(data: bytes) -> tuple[bool, bool]:
    """Whether a shape's mark is in `data`, and whether a run of `RUN` characters of base64 is."""
    text = data if data.isascii() else data.translate(_ASCII)
    marked, coded, either = _searches()
    return (marked(text), coded(text)) if either(text) else (False, False)


@cache
def _searches() -> tuple[Callable[[bytes], bool], ...]:
    """Whether a text has a mark, a run, either."""
    marked = "|".join((*map(_expression, marks()), _ADDRESS))
    return tuple(map(_search, (marked, _CODED, f"{marked}|{_CODED}")))


def _expression(mark: tuple[str, ...]) -> str:
    sets = ["".join(f"\\x{ord(one):02x}" for one in letters) for letters in mark]
    four = "".join(f"[{letters}]" for letters in sets)
    return _BEHIND + four if mark[:2] in (("s", "k"), ("S", "K")) else four


def _search(expression: str) -> Callable[[bytes], bool]:
    # Bytes of ASCII are text to it as they are: nothing is copied.
    return SchemaValidator(core_schema.str_schema(pattern=expression)).isinstance_python
