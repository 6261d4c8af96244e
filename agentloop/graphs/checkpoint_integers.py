"""LangGraph's serializer, for integers of any size.

In: values of a state, as LangGraph gives them; out: the same documents, in which an integer of more
than msgpack's 64 bits is written as its decimal digits and read back as an integer. Only a value
that the plain serializer refuses is looked through, so others cost nothing.
"""

from __future__ import annotations

from typing import Any

import ormsgpack
from langgraph.checkpoint.serde.jsonplus import EXT_CONSTRUCTOR_SINGLE_ARG, JsonPlusSerializer
from langgraph.types import Send
from pydantic import BaseModel

from agentloop.errors import UsageError

_LEAST, _MOST = -(1 << 63), (1 << 64) - 1


class IntegerSerializer(JsonPlusSerializer):
    """Constructs nothing on loading but LangGraph's own types and integers."""

    def __init__(self) -> None:
        super().__init__(allowed_msgpack_modules=[("builtins", "int")])

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """The kind of document and the document. Raises `UsageError` for a value that cannot be
        kept."""
        try:
            return super().dumps_typed(obj)
        except ormsgpack.MsgpackEncodeError:
            try:
                return super().dumps_typed(_written(obj))
            except (ormsgpack.MsgpackEncodeError, ValueError) as error:
                raise UsageError(
                    f"the state of the graph cannot be stored: {error}; keep messages and plain "
                    "values in it, and integers of over 64 bits in lists, dictionaries or messages"
                ) from error


def _written(value: Any) -> Any:
    """`value` with its large integers as extensions."""
    if type(value) is int and not _LEAST <= value <= _MOST:
        return ormsgpack.Ext(
            EXT_CONSTRUCTOR_SINGLE_ARG, ormsgpack.packb(("builtins", "int", str(value)))
        )
    if type(value) in (list, tuple):
        return [_written(item) for item in value]
    if type(value) is dict:
        return {key: _written(item) for key, item in value.items()}
    if isinstance(value, BaseModel):  # messages
        return value.model_copy(update={name: _written(item) for name, item in value})
    if isinstance(value, Send):
        return Send(value.node, _written(value.arg), timeout=value.timeout)
    return value
