"""CPU per LLM call: the rollouts' transport beside the `openai` SDK, litellm and bare `aiohttp`.

All send the same request to the same mock on the other core, each in a process of its own, in
turns; ours and bare `aiohttp` a second time with the token ids and log-probs that the others do
not ask for. The bound is physical: what the kernel takes to carry the bytes over one blocking
socket.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from benchmarks.harness import Check, Result, Runs, alternate, main, medians, mock_server, ratio
from benchmarks.peers import ABSENT, python_of

LEVELS, QUICK_LEVELS = (1, 16, 64, 256), (1, 16)
CALLS = {"openai": 240, "openai 3": 240, "litellm": 120}
"""Per level; 1,000 for the others. Four times fewer with `--quick`."""
IDS = 64


def variants(base_url: str, quick: bool) -> tuple[dict[str, list[str]], dict[str, str]]:
    """(command by name, why another is left out by name)."""
    levels = ",".join(str(level) for level in (QUICK_LEVELS if quick else LEVELS))
    found: dict[str, list[str]] = {}
    absent: dict[str, str] = {}
    for name in ("agentloop", "aiohttp", "agentloop with ids", "aiohttp with ids", "openai",
                 "openai 3", "litellm", "raw socket"):  # fmt: skip
        python: object = sys.executable
        if name == "openai 3":
            python = python_of("openai")
        elif name in ("openai", "litellm") and find_spec(name) is None:
            python = None
        if python is None:
            here = "not installed; see `api` among the extras in pyproject.toml"
            absent[name] = ABSENT if name == "openai 3" else here
            continue
        client = "openai" if name == "openai 3" else name
        calls = str(CALLS.get(name, 1000) // (4 if quick else 1))
        command = [str(python), "-m", "benchmarks.call_clients", client, base_url, calls]
        found[name] = [*command, "1" if name == "raw socket" else levels]
    return found, absent


def rows(runs: Runs, absent: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row a client and level."""
    table: list[dict[str, Any]] = []
    for name, of_name in runs.items():
        found = medians(of_name)
        for level in LEVELS:
            if f"cpu_us_{level}" in found:
                table.append(
                    {"who": name, "version": of_name[0]["version"], "in_flight": level,
                     "cpu_us_per_call": found[f"cpu_us_{level}"],
                     "wall_us_per_call": found[f"wall_us_{level}"]}
                )  # fmt: skip
    return table + [{"who": name, "skipped": reason} for name, reason in absent.items()]


def checks(runs: Runs, levels: Sequence[int]) -> list[Check]:
    """Each peer's CPU over ours and ours over bare `aiohttp`'s, by the runs of one round."""
    found = []
    for level in levels:
        cpu = f"cpu_us_{level}"
        for peer in ("openai", "openai 3", "litellm"):
            if peer in runs:
                target = 12.0 if peer == "litellm" else 3.0 if level == 1 else 5.0
                name = f"{peer} / agentloop, {level} in flight"
                found.append(Check(name, ratio(runs, peer, "agentloop", cpu), target))
        for kind in ("", " with ids"):
            name = f"agentloop{kind} / aiohttp{kind}, {level} in flight"
            value = ratio(runs, f"agentloop{kind}", f"aiohttp{kind}", cpu)
            found.append(Check(name, value, 2.0, at_most=True))
    bound = ratio(runs, "agentloop", "raw socket", "cpu_us_1")
    return [*found, Check("agentloop / raw socket, 1 in flight", bound, 20.0, at_most=True)]


def measure(quick: bool) -> Result:
    """Run all in turns against one mock, which gives token ids to those that ask."""
    with mock_server(ids=IDS) as base_url:
        commands, absent = variants(base_url, quick)
        runs = alternate(commands, 3 if quick else 5)
    levels = QUICK_LEVELS if quick else LEVELS
    return Result(rows(runs, absent), checks(runs, levels), ("aiohttp", "openai", "litellm"))


if __name__ == "__main__":
    main("calls", measure)
