"""Rollouts of six turns with a tool, the durable log on: their CPU beside the bare graph's, and how
near rollouts per second come to what the processor and the model's latency allow.

The model is a mock on the other core. The bound is physical: no run can be faster than its CPU time
on its core, nor than `in flight / (turns x latency)`. Peers run the same conversation against the
same mock, in the documented configuration of theirs that captures token ids at the least cost.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Check, Result, alternate, main, median, medians, mock_server
from benchmarks.peers import python_of
from benchmarks.rollout_clients import TURNS

IN_FLIGHT, IDS = 256, 32
PEERS = ("verifiers", "agentlightning")
Runs = Mapping[str, Sequence[Mapping[str, Any]]]


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
        {"who": name, "latency_s": latency, "in_flight": IN_FLIGHT, "rollouts": rollouts,
         "turns": TURNS, "cpu_ms_per_rollout": found["cpu_ms"],
         "rollouts_per_second": found["per_second"], **extra(of_name[0])}
        for name, of_name in runs.items()
        for found in (medians(of_name),)
    ]  # fmt: skip


def extra(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a peer says about its version and its configuration."""
    return {key: value for key, value in run.items() if isinstance(value, str)}


def overhead(rollouts: int, repeats: int) -> tuple[list[dict[str, Any]], list[Check], Runs]:
    """Ours and the bare graph in turns, behind 50 ms."""
    with mock_server(latency_ms=50, turns=TURNS, ids=IDS) as url:
        commands = {who: command(who, url, rollouts) for who in ("agentloop", "bare")}
        runs = alternate(commands, repeats)
    pairs = zip(runs["agentloop"], runs["bare"], strict=True)
    ratio = median([one["cpu_ms"] / other["cpu_ms"] for one, other in pairs])
    near = median([share(run, 0.05) for run in runs["agentloop"]])
    checks = [
        Check("CPU per rollout / the bare graph's", ratio, 1.5, at_most=True),
        Check("rollouts per second / the bound, 50 ms", near, 0.8),
    ]
    return rows(runs, 0.05, rollouts), checks, runs


def waiting(rollouts: int, repeats: int) -> tuple[list[dict[str, Any]], list[Check]]:
    """Ours behind 2 s: the processor should not be what limits."""
    with mock_server(latency_ms=2000, turns=TURNS, ids=IDS) as url:
        runs = alternate({"agentloop": command("agentloop", url, rollouts)}, repeats)
    near = median([run["per_second"] / (IN_FLIGHT / (TURNS * 2)) for run in runs["agentloop"]])
    check = Check("rollouts per second / the bound, 2 s", near, 0.95)
    return rows(runs, 2.0, rollouts), [check]


def peers(ours: float, rollouts: int, repeats: int) -> tuple[list[dict[str, Any]], list[Check]]:
    """Those that are installed, in turns, behind 50 ms."""
    pythons = {peer: python_of(peer) for peer in PEERS}
    with mock_server(latency_ms=50, turns=TURNS, ids=IDS) as url:
        runs = alternate(
            {peer: peer_command(python, peer, url, rollouts)
             for peer, python in pythons.items() if python is not None},
            repeats, timeout=600,
        )  # fmt: skip
    table = rows(runs, 0.05, rollouts)
    table += [
        {"who": peer, "skipped": "not installed; see `make peers`"}
        for peer, python in pythons.items() if python is None
    ]  # fmt: skip
    if not runs:
        return table, []
    fastest = max(medians(of_name)["per_second"] for of_name in runs.values())
    return table, [Check("rollouts per second / the faster peer's", round(ours / fastest, 2), 2.0)]


def measure(quick: bool) -> Result:
    """All of it; `--quick` leaves out the 2 s model and the peers."""
    table, checks, runs = overhead(*((128, 3) if quick else (768, 5)))
    if not quick:
        ours = medians(runs["agentloop"])["per_second"]
        for more_rows, more_checks in (waiting(512, 5), peers(ours, 128, 5)):
            table, checks = table + more_rows, checks + more_checks
    return Result(table, checks, ("langgraph", "aiohttp"))


if __name__ == "__main__":
    main("rollouts", measure)
