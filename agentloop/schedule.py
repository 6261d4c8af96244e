"""Cycles at an interval: one scheduler per home, by a lease; an unfinished cycle is resumed first.

Goes in: a function that runs cycle number k. The slot is a number in the log, so a restart goes on
counting where it stopped. Intervals are measured with the monotonic clock.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from agentloop.errors import UsageError
from agentloop.store.archive import Archive
from agentloop.store.leases import holder

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def interval(text: str) -> float:
    """`30m`, `6h`, `1d`, `45s` in seconds. Raises `UsageError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"`{text}` is not an interval; write a number and s, m, h or d, e.g. 6h")
    return float(match[1]) * _UNITS[match[2]]


def run(
    archive: Archive, workflow: str, cycle: Callable[[int], str], *, every: float,
    cycles: int | None = None,
) -> int:  # fmt: skip
    """Run `cycle(number)` every `every` seconds until `cycles` of them ended; how many did.

    Raises `StoreError` when another scheduler holds this home's lease.
    """
    name = f"schedule/{workflow}"
    token = archive.log.lease(name, holder(), ttl=every + 3600.0)
    done = 0
    try:
        while cycles is None or done < cycles:
            began = time.monotonic()
            number = len(archive.log.keys(f"{name}/slot"))
            state = cycle(number)
            archive.log.renew(name, token, ttl=every + 3600.0)
            archive.add_event(f"{name}/slot", str(number), workflow, {"state": state})
            done += 1
            if cycles is None or done < cycles:
                time.sleep(max(0.0, every - (time.monotonic() - began)))
    finally:
        archive.log.release(name, token)
    return done
