"""Appending to the log beside a bare SQLite table with the same durability and group size.

The bound is physical: the same bytes, the same number of commits, no hash chain, no redaction, no
idempotence. Ours and the bare one alternate within one run.
"""

from __future__ import annotations

import random
import sqlite3
import tempfile
import time
from pathlib import Path

from agentloop.records import Json
from agentloop.store.log import Log
from agentloop.store.query import Draft
from benchmarks.harness import Check, Result, main, median

GROUP = 100


def row(number: int, rng: random.Random) -> dict[str, Json]:
    """About 3 kB, as a rollout of three turns."""
    ids: list[Json] = [rng.randrange(50_000) for _ in range(400)]
    return {"id": number, "text": "the answer is " * 20, "token_ids": ids}


def ours(path: Path, rows: list[dict[str, Json]]) -> tuple[float, float]:
    """(wall, CPU) seconds to append in groups."""
    log = Log(path)
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(rows), GROUP):
        log.append([Draft(kind="bench", key=f"{path}-{start + at}", body=one)
                    for at, one in enumerate(rows[start : start + GROUP])])
    spent = time.perf_counter() - wall, time.process_time() - cpu
    log.close()
    return spent


def bare(path: Path, rows: list[dict[str, Json]]) -> tuple[float, float]:
    """The same bytes as JSON text into a plain table."""
    import json

    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE entry (seq INTEGER PRIMARY KEY, body BLOB)")
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(rows), GROUP):
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO entry (body) VALUES (?)",
                       [(json.dumps(one).encode(),) for one in rows[start : start + GROUP]])
        db.execute("COMMIT")
    spent = time.perf_counter() - wall, time.process_time() - cpu
    db.close()
    return spent


def measure(quick: bool) -> Result:
    """Rows per second of both, and how many bare rows one of ours costs."""
    rng = random.Random(0)
    rows = [row(number, rng) for number in range(1000 if quick else 5000)]
    walls: dict[str, list[float]] = {"agentloop": [], "bare sqlite": []}
    cpus: dict[str, list[float]] = {"agentloop": [], "bare sqlite": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(3 if quick else 7):
            for name, run in (("agentloop", ours), ("bare sqlite", bare)):
                wall, cpu = run(Path(folder) / f"{name}-{number}.db", rows)
                walls[name].append(wall)
                cpus[name].append(cpu)
    table = [
        {"who": name, "rows": len(rows), "group": GROUP,
         "rows_per_second": median([len(rows) / wall for wall in walls[name]]),
         "cpu_us_per_row": median([1e6 * cpu / len(rows) for cpu in cpus[name]])}
        for name in walls
    ]  # fmt: skip
    share = median([b / a for a, b in zip(walls["agentloop"], walls["bare sqlite"], strict=True)])
    return Result(table, [Check("share of bare SQLite's rate", share, 0.2)])


if __name__ == "__main__":
    main("store", measure)
