"""Values of a state to the chunks of a `ThreadFile` and back.

Goes in: what a channel holds, or what a task wrote to it. Comes out: one msgpack document, or one
for each element of a list: a conversation that grows by appending shares all earlier chunks, and a
message that a task wrote is the same chunk in the checkpoint after it.
"""

from __future__ import annotations

from operator import is_
from typing import Any

import ormsgpack
from langgraph.checkpoint.serde.base import SerializerProtocol

from agentloop.graphs.checkpoint_file import Packed, ThreadFile


def pack(file: ThreadFile, value: Any, serde: SerializerProtocol) -> Packed:
    """The chunks that hold `value`; within `file.writing`."""
    if _splits(value):
        return [file.chunk(_dump(item, serde)) for item in value]
    return file.chunk(_dump(value, serde))


def pack_channel(
    file: ThreadFile, key: tuple[str, str], value: Any, serde: SerializerProtocol
) -> Packed:
    """Like `pack`; objects that the same channel (`key`) began with last time are not encoded
    again. Containers may have been changed in place, so all of them are compared at once."""
    if not _splits(value):
        return pack(file, value, serde)
    objects, chunks, plain = file.live.get(key, ([], [], b""))
    kept = value[: len(objects)]
    if len(kept) < len(objects) or not all(map(is_, objects, kept)) or plain != _plain(kept, serde):
        kept, chunks = [], []
    packed = [*chunks, *(file.chunk(_dump(item, serde)) for item in value[len(kept) :])]
    file.live[key] = (value[:], packed, _plain(value, serde))
    return packed


def unpack(file: ThreadFile, packed: Packed, serde: SerializerProtocol) -> Any:
    """The value again, made of nothing but what `serde` allows."""
    if isinstance(packed, int):
        return serde.loads_typed(("msgpack", file.chunks[packed]))
    return [serde.loads_typed(("msgpack", file.chunks[at])) for at in packed]


def _splits(value: Any) -> bool:
    """Whether a value is stored by element; a list of numbers is cheaper as a whole."""
    return type(value) is list and not (value and isinstance(value[0], int | float))


def _dump(value: Any, serde: SerializerProtocol) -> bytes:
    kind, data = serde.dumps_typed(value)
    return data if kind == "msgpack" else ormsgpack.packb(value)  # `None` and bytes


def _plain(items: list[Any], serde: SerializerProtocol) -> bytes:
    return _dump([item for item in items if isinstance(item, dict | list)], serde)
