"""Secrets taken out of a msgpack document.

In: a document as LangGraph's serializer writes it, objects as extensions included; out: the same
with every string, key and readable byte string redacted. It is taken apart without constructing
any object.
"""

from __future__ import annotations

from typing import Any

import ormsgpack

from agentloop.trajectories.redact import Redactor

_OPTION = ormsgpack.OPT_NON_STR_KEYS


def redacted(document: bytes, redact: Redactor) -> bytes:
    """`document` without the secrets in its strings."""

    def walk(value: Any) -> Any:
        match value:
            case str():
                return redact.text(value)
            case list():
                return [walk(item) for item in value]
            case dict():
                return {walk(key): walk(item) for key, item in value.items()}
            case bytes():
                try:
                    return redact.text(value.decode()).encode()
                except UnicodeDecodeError:
                    return value
        return value

    def inner(code: int, data: bytes) -> ormsgpack.Ext:
        return ormsgpack.Ext(code, redacted(data, redact))

    content = ormsgpack.unpackb(document, ext_hook=inner, option=_OPTION)
    return ormsgpack.packb(walk(content), option=_OPTION)
