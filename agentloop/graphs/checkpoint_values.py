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

_CONTAINER = (dict, list)
_NONE = ormsgpack.packb(None)


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
    objects, chunks, read = file.live.get(key, ([], [], b""))
    kept = value[: len(objects)]
    if len(kept) < len(objects) or not all(map(is_, objects, kept)) or read != _read(kept, serde):
        kept, chunks, read = [], [], b""
    new = value[len(kept) :]
    raw = [_dump(item, serde) for item in new]
    packed = [*chunks, *map(file.chunk, raw)]
    read += b"".join(
        one for one, item in zip(raw, new, strict=True) if isinstance(item, _CONTAINER)
    )
    file.live[key] = (value[:], packed, read)
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
    if value is None:  # what most channels hold: a message to the next node
        return _NONE
    kind, data = serde.dumps_typed(value)
    return data if kind == "msgpack" else ormsgpack.packb(value)  # bytes


def _read(items: list[Any], serde: SerializerProtocol) -> bytes:
    """The documents of the containers among `items`, one after the other, encoded at once."""
    containers = [item for item in items if isinstance(item, _CONTAINER)]
    if not containers:
        return b""
    # A list of up to 15 items begins with one byte, of up to 65,535 with three, else with five.
    head = 1 if len(containers) < 16 else 3 if len(containers) < 1 << 16 else 5
    return _dump(containers, serde)[head:]
