"""Whether weights are numbers: NaN and infinity are found before a policy is admitted.

In: a safetensors file. Out: nothing, or a `PolicyError` that names the tensor. Read by hand (8
bytes of header length, a JSON header, data), because the library needs torch for bfloat16 and this
stage has none. A file that is no safetensors is left to the server, which refuses it.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from agentloop.errors import PolicyError

_EXPONENT = {"F64": ("<u8", 0x7FF << 52), "F32": ("<u4", 0xFF << 23), "F16": ("<u2", 0x1F << 10),
             "BF16": ("<u2", 0xFF << 7)}  # fmt: skip
"""Kind -> how to read it, and the bits of its exponent: all of them set is NaN or infinity (IEEE
754, section 3.4; bfloat16 is the upper half of float32)."""
_CHUNK = 1 << 24


def check_finite(path: Path) -> None:
    """Raise `PolicyError` when a floating-point tensor of the file holds NaN or infinity."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length)) if length <= size - 8 else None
        except ValueError:  # also of a text that is not UTF-8
            header = None
        for name, about in header.items() if isinstance(header, dict) else ():
            with suppress(ValueError, KeyError, TypeError):  # no tensor
                _check(file, 8 + length, about, f"`{name}` in `{path.name}`")


def _check(file: BinaryIO, start: int, about: Any, which: str) -> None:
    if about["dtype"] not in _EXPONENT:
        return
    kind, exponent = _EXPONENT[about["dtype"]]
    begin, end = about["data_offsets"]
    file.seek(start + begin)
    for at in range(begin, end, _CHUNK):
        bits = np.frombuffer(file.read(min(_CHUNK, end - at)), dtype=kind)
        if bool(((bits & exponent) == exponent).any()):
            raise PolicyError(
                f"the weights {which} are not all finite numbers; train with a smaller learning "
                "rate"
            )
