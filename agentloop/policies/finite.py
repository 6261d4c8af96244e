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

_BAD = {
    "F64": ("<u8", 0x7FF << 52), "F32": ("<u4", 0xFF << 23), "F16": ("<u2", 0x1F << 10),
    "BF16": ("<u2", 0xFF << 7), "C64": ("<u4", 0xFF << 23), "F8_E5M2": ("u1", 0x1F << 2),
    "F8_E4M3": ("u1", 0x7F), "F8_E8M0": ("u1", 0xFF),
}  # fmt: skip
"""Kind -> how to read it, and the bits that are all set in what is no finite number. In IEEE 754
(section 3.4; bfloat16 is the upper half of float32) these are the exponent's. Of 8 bits, E5M2 is
like it, E4M3 has no infinity and E8M0 is an exponent alone with one NaN (OCP Microscaling Formats
1.0, sections 5.3.1 and 5.4.1)."""
_CHUNK = 1 << 24


def check_finite(path: Path) -> None:
    """Raise `PolicyError` when a floating-point tensor of the file holds NaN or infinity."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length)) if length <= size - 8 else None
        except (ValueError, RecursionError):  # also of a text that is not UTF-8
            header = None
        for name, about in header.items() if isinstance(header, dict) else ():
            with suppress(ValueError, KeyError, TypeError, OverflowError):  # no tensor
                _check(file, (8 + length, size), about, f"`{name}` in `{path.name}`")


def _check(file: BinaryIO, data: tuple[int, int], about: Any, which: str) -> None:
    """`data` is where all tensors lie in the file."""
    kind, bits = _BAD[about["dtype"]]
    begin, end = (data[0] + at for at in about["data_offsets"])
    for at in range(begin, min(end, data[1]), _CHUNK):
        file.seek(at)
        read = file.read(min(_CHUNK, end - at))
        values = np.frombuffer(read, dtype=kind, count=len(read) // np.dtype(kind).itemsize)
        if bool(((values & bits) == bits).any()):
            raise PolicyError(
                f"the weights {which} are not all finite numbers; train with a smaller learning "
                "rate"
            )
