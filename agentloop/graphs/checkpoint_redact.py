"""Secrets taken out of a msgpack document.

In: a document as LangGraph's serializer writes it, objects as extensions included; out: the same
with every string, key and readable byte string redacted, each as what stands under its key. It is
taken apart without constructing any object.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import ormsgpack

from agentloop.trajectories.redact import Redactor

_OPTION = ormsgpack.OPT_NON_STR_KEYS


_FIRST_KEYS = tuple(
    re.compile(
        start + rb"(?:(?<=[\xd9\xc4].{4})|(?<=[\xda\xc5].{5})|(?<=[\xdb\xc6].{7}))", re.DOTALL
    )
    for start in (rb"sk[-_0-9a-f]", rb"SK[0-9a-f]")  # a fixed beginning is found quickest
)
"""How some keys begin, at the beginning of a string or of bytes whose length has one, two or
four bytes: the only shapes that are not looked for after a letter or a digit."""


class _Object(NamedTuple):
    code: int
    document: bytes


def suspects(document: bytes, redact: Redactor) -> bool:
    """As `Redactor.suspects`, for msgpack: what stands before a string there is its length, which
    may look like a letter of a word that the string ends."""
    return redact.suspects(document) or any(key.search(document) for key in _FIRST_KEYS)


def redacted(document: bytes, redact: Redactor, key: str = "") -> bytes:
    """`document`, which stands under `key`, without the secrets in its strings."""

    def walk(value: Any, key: str) -> Any:
        match value:
            case _Object():
                return ormsgpack.Ext(value.code, redacted(value.document, redact, key))
            case str():
                return redact.text(value, key)
            case list():
                return [walk(item, key) for item in value]
            case dict():
                return {
                    walk(name, ""): walk(item, name if isinstance(name, str) else key)
                    for name, item in value.items()
                }
            case bytes():
                try:
                    return redact.text(value.decode(), key).encode()
                except UnicodeDecodeError:
                    return value
        return value

    content = ormsgpack.unpackb(document, ext_hook=_Object, option=_OPTION)
    return ormsgpack.packb(walk(content, key), option=_OPTION)
