"""Records to JSON and back, with a schema version; pydantic does the work.

`encode` gives compact JSON bytes, `decode` checks types on the way in. Unknown keys are dropped
on purpose: a log written by a newer release stays readable.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from agentloop.errors import StoreError

T = TypeVar("T")
SCHEMA_VERSION = 1


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _of(kind: Any) -> TypeAdapter[Any]:
    return _adapter(kind)


def encode(value: object) -> bytes:
    """Compact UTF-8 JSON of a record (or of a tuple or list of them)."""
    return _of(type(value)).dump_json(value, exclude_defaults=True)


def to_json(value: object) -> Any:
    """The same as JSON types."""
    return _of(type(value)).dump_python(value, mode="json", exclude_defaults=True)


def decode(kind: type[T], data: bytes | str) -> T:
    """A record of `kind`; raises `StoreError` when the data is not one."""
    try:
        return _of(kind).validate_json(data)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise StoreError(f"stored data is not a {kind.__name__}: {_first(error)}") from error


def from_json(kind: type[T], data: object) -> T:
    """A record of `kind` from JSON types."""
    try:
        return _of(kind).validate_python(data)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise StoreError(f"stored data is not a {kind.__name__}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False)[0]
    return f"{'.'.join(str(at) for at in detail['loc'])}: {detail['msg']}"
