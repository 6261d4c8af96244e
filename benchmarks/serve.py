"""What `agentloop serve` costs: CPU of a request with one model call, and of each further turn.

The model is a mock on the other core. The same client asks it straight and through a served
workflow in the same process; the difference is what serving costs, HTTP on both sides included.
Both kinds of agents: the workflow's own (one request, its tool run here) and one at the client (a
request per turn), each with its conversations logged and not.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.harness import Check, Result, Runs, alternate, main, median, medians, mock_server

FURTHER = 5
"""Turns after the first, in the longer conversations."""
WHO = ("straight", "agent", "agent logged", "tools", "tools logged")


def command(who: str, url: str, requests: int, turns: int) -> list[str]:
    """One run."""
    return [sys.executable, "-m", "benchmarks.serve_clients", who, url, str(requests), str(turns)]


def runs(turns: int, requests: int, repeats: int) -> Runs:
    """All variants at conversations of so many turns."""
    with mock_server(turns=turns) as url:
        return alternate({who: command(who, url, requests, turns) for who in WHO}, repeats)


def overhead(found: Runs, who: str) -> list[float]:
    """Milliseconds of CPU that a conversation costs more than straight, round by round."""
    pairs = zip(found[who], found["straight"], strict=True)
    return [one["cpu_ms"] - other["cpu_ms"] for one, other in pairs]


def measure(quick: bool) -> Result:
    """Short and long conversations."""
    requests, repeats = (100, 3) if quick else (400, 5)
    short, long = runs(1, requests, repeats), runs(1 + FURTHER, requests // 2, repeats)
    rows: list[dict[str, Any]] = []
    checks = []
    for turns, found in ((1, short), (1 + FURTHER, long)):
        rows += [
            {"who": who, "turns": turns, "cpu_ms_per_conversation": medians(found[who])["cpu_ms"],
             "conversations_per_second": medians(found[who])["per_second"],
             "overhead_ms": median(overhead(found, who))}
            for who in WHO
        ]  # fmt: skip
    for who in WHO[1:]:
        one = overhead(short, who)
        checks.append(Check(f"{who}: CPU ms of one model call", median(one), 10.0, at_most=True))
        further = [
            (more - first) / FURTHER for more, first in zip(overhead(long, who), one, strict=True)
        ]
        checks.append(Check(f"{who}: CPU ms of a further turn", median(further), 5.0, at_most=True))
    return Result(rows, checks, ("aiohttp", "langgraph"))


if __name__ == "__main__":
    main("serve", measure)
