"""What it costs to make an agent's steps durable: LangGraph's savers and ours, on the same graph.

A loop of two nodes, 0.5 kB appended at each of 40 steps. Every variant is a process of its own and
they take turns. `sync` is the durability that a rollout needs: a step starts when the one before it
is kept. Bytes are those handed to the system, not the size of the files: a database that reuses its
write-ahead log writes many times what it ends up holding. The bound is the payload itself, appended
to a SQLite table and to a file.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

from benchmarks.harness import Check, Result, alternate, main, medians, ratio

OURS, STOCK, TABLE = "agentloop:sync", "stock:sync", "bare sqlite"
QUICK = ("none", STOCK, OURS, TABLE, "bare file")
ALL = (*QUICK, "memory:sync", "stock:exit", "stock:async", "stock:sync:delta", "agentloop:async")
STEPS = 40


def measure(quick: bool) -> Result:
    """Medians, and ours beside the stock saver and beside the payload."""
    runs, repeats = (10, 3) if quick else (30, 7)
    stock = find_spec("langgraph.checkpoint.sqlite") is not None
    wanted = [name for name in (QUICK if quick else ALL) if stock or not name.startswith("stock")]
    worker = [sys.executable, "-m", "benchmarks.step_variants"]
    commands = {name: [*worker, name, str(runs), str(STEPS)] for name in wanted}
    measured = alternate(commands, repeats)
    found = {name: medians(each) for name, each in measured.items()}
    rows: list[dict[str, Any]] = [{"who": name, "steps": STEPS, **found[name]} for name in wanted]
    cpu = {name: one["cpu_us_per_step"] for name, one in found.items()}
    written = {name: one["written_per_payload"] for name, one in found.items()}
    checks = []
    if written[TABLE]:
        share = round(written[OURS] / written[TABLE], 3)
        checks = [
            Check("bytes written per byte of payload", written[OURS], 2.0, at_most=True),
            Check("bytes written, share of a bare SQLite append of the payload", share, 1.0,
                  at_most=True),
        ]  # fmt: skip
    else:
        rows.append({"who": "bytes written", "skipped": "only Linux counts them"})
    if stock:
        share = ratio(measured, OURS, STOCK, "cpu_us_per_step")
        checks.append(Check("CPU of a durable step, share of stock's", share, 0.5, at_most=True))
        added = {name: round(cpu[name] - cpu["none"], 1) for name in (OURS, STOCK)}
        rows.append({"who": "added to a step that is not kept", "cpu_us_per_step": added})
    else:
        rows.append({"who": STOCK, "skipped": "langgraph-checkpoint-sqlite is not installed"})
    return Result(rows, checks, ("langgraph", "langgraph-checkpoint-sqlite"))


if __name__ == "__main__":
    main("steps", measure)
