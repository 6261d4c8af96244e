"""Rollouts of six turns with a tool, the durable log on: their CPU beside the bare graph's, and how
near rollouts per second come to what the processor and the model's latency allow.

The model is a mock on the other core. The bound is physical: no run can be faster than its CPU time
on its core, nor than `in flight / (turns x latency)`. Peers and ours take turns at the same
conversation against the same mock on the same core, theirs in the documented configuration that
captures token ids at the least cost (`peer_rollouts/`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    Check,
    Result,
    Runs,
    alternate,
    main,
    median,
    medians,
    mock_server,
    ratio,
)
from benchmarks.peers import ABSENT, python_of
from benchmarks.rollout_clients import TURNS

IN_FLIGHT, IDS = 256, 32
PEERS = ("verifiers", "agentlightning")


def command(who: str, url: str, rollouts: int) -> list[str]:
    """One run of ours or of the bare graph."""
    client = ["-m", "benchmarks.rollout_clients", who, url, str(rollouts), str(IN_FLIGHT)]
    return [sys.executable, *client]


def peer_command(python: Path, who: str, url: str, rollouts: int) -> list[str]:
    """One run of a peer, in its own environment."""
    script = Path(__file__).parent / "peer_rollouts" / f"{who}_rollouts.py"
    return [str(python), str(script), url, str(rollouts), str(IN_FLIGHT)]


def share(run: Mapping[str, Any], latency: float) -> float:
    """Of the physical bound: the slower of one core and the model's latency."""
    bound = min(1000 / run["cpu_ms"], IN_FLIGHT / (TURNS * latency))
    return float(run["per_second"] / bound)


def rows(runs: Runs, latency: float, rollouts: int) -> list[dict[str, Any]]:
    """One row a variant."""
    return [
        {"who": name, "latency_s": latency, "rollouts": rollouts,
         "in_flight": int(found.get("in_flight", min(IN_FLIGHT, rollouts))),
         "turns": TURNS, "cpu_ms_per_rollout": found["cpu_ms"],
         "rollouts_per_second": found["per_second"], **extra(of_name[0])}
        for name, of_name in runs.items()
        for found in (medians(of_name),)
    ]  # fmt: skip


def extra(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a peer says about its version and its configuration."""
    return {key: value for key, value in run.items() if isinstance(value, str)}


def overhead(rollouts: int, repeats: int) -> tuple[list[dict[str, Any]], list[Check]]:
    """Ours and the bare graph in turns, behind 50 ms; the bare one also without the token ids in
    its replies, which it has no use for."""
    with mock_server(latency_ms=50, turns=TURNS, ids=IDS) as url:
        sides = ("agentloop", "bare", "bare without ids")
        runs = alternate({who: command(who, url, rollouts) for who in sides}, repeats)
    near = median([share(run, 0.05) for run in runs["agentloop"]])
    checks = [
        *(
            Check(f"CPU per rollout / that of the graph {side}",
                  ratio(runs, "agentloop", side, "cpu_ms"), 1.5, at_most=True)
            for side in sides[1:]
        ),
        Check("rollouts per second / the bound, 50 ms", near, 0.8),
    ]  # fmt: skip
    return rows(runs, 0.05, rollouts), checks


def waiting(rollouts: int, repeats: int) -> tuple[list[dict[str, Any]], list[Check]]:
    """Ours behind 2 s: the processor should not be what limits. Five times as many rollouts as are
    in flight: the first and the last of each slot, which nothing overlaps with, are part of it."""
    with mock_server(latency_ms=2000, turns=TURNS, ids=IDS) as url:
        runs = alternate({"agentloop": command("agentloop", url, rollouts)}, repeats)
    near = median([run["per_second"] / (IN_FLIGHT / (TURNS * 2)) for run in runs["agentloop"]])
    check = Check("rollouts per second / the bound, 2 s", near, 0.95)
    return rows(runs, 2.0, rollouts), [check]


def peers(rollouts: int, repeats: int) -> tuple[list[dict[str, Any]], list[Check]]:
    """Ours and the peers that are installed, in turns, behind 50 ms."""
    pythons = {peer: python_of(peer) for peer in PEERS}
    table = [{"who": peer, "skipped": ABSENT} for peer in PEERS if pythons[peer] is None]
    installed = {peer: python for peer, python in pythons.items() if python is not None}
    if not installed:
        return table, []
    with mock_server(latency_ms=50, turns=TURNS, ids=IDS) as url:
        commands = {"agentloop": command("agentloop", url, rollouts)}
        for peer, python in installed.items():
            commands[peer] = peer_command(python, peer, url, rollouts)
        runs = alternate(commands, repeats, timeout=600)
    checks = [
        Check(f"rollouts per second / {peer}'s", ratio(runs, "agentloop", peer, "per_second"), 2.0)
        for peer in installed
    ]
    return rows(runs, 0.05, rollouts) + table, checks


def measure(quick: bool) -> Result:
    """All of it; `--quick` leaves out the 2 s model and the peers."""
    table, checks = overhead(*((IN_FLIGHT // 2, 3) if quick else (3 * IN_FLIGHT, 5)))
    if quick:
        table += [{"who": peer, "skipped": "takes minutes; run without --quick"} for peer in PEERS]
    else:
        for more_rows, more_checks in (waiting(5 * IN_FLIGHT, 5), peers(IN_FLIGHT, 5)):
            table, checks = table + more_rows, checks + more_checks
    return Result(table, checks, ("langgraph", "aiohttp"))


if __name__ == "__main__":
    main("rollouts", measure)
