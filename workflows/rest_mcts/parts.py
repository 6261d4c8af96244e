"""What `--model scripted` plays: a model that adds number by number and sometimes slips.

Goes in: a request. Comes out: the next step, decided by the request alone. It stands in for a small
model whose mistakes are chance at temperature 0.7, fixed at temperature 0, and gone once it is
trained.
"""

from __future__ import annotations

import re
import zlib

from agentloop.records import Message, Request

SLIPS = 3
"""One step in so many is wrong."""


def replies(request: Request) -> str:
    """The next step of the sum, or its result."""
    own = [one for one in request.messages if one.name != "example" and one.role != "system"]
    numbers = [int(one) for one in re.findall(r"\d+", own[0].content)]
    said = [one.content for one in own if one.role == "assistant"]
    total = int(said[-1].rpartition("=")[2]) if said else numbers[0]
    if len(said) == len(numbers) - 1:
        return f"Answer: {total}"
    following = numbers[len(said) + 1]
    return f"{total} + {following} = {total + following + _slip(request, own)}"


def _slip(request: Request, own: list[Message]) -> int:
    if request.policy:
        return 0
    seed = request.sampling.seed if request.sampling.temperature else 0
    drawn = zlib.crc32(f"{seed}/{[one.content for one in own]}".encode())
    return 1 if drawn % SLIPS == 0 else 0
