"""What `--model scripted` plays: a model that adds, and slips until it is trained.

Goes in: a request. Comes out: an answer, decided by the request alone. It stands in for a small
model whose mistakes are chance at temperature 1, fixed at temperature 0, and gone once it is
trained.
"""

from __future__ import annotations

import re
import zlib

from agentloop.records import Request

SLIPS = 2
"""One answer in so many is wrong."""


def replies(request: Request) -> str:
    """The sum, or a number beside it."""
    own = [one for one in request.messages if one.name != "example" and one.role != "system"]
    numbers = [int(one) for one in re.findall(r"\d+", own[0].content)]
    seed = request.sampling.seed if request.sampling.temperature else 0
    slips = zlib.crc32(f"{seed}/{own[0].content}".encode()) % SLIPS == 0
    return f"Answer: {sum(numbers) + (1 if slips and not request.policy else 0)}"
