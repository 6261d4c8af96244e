"""The store: appending beside a bare SQLite table, reading and searching, many processes at once.

The bound is physical: the same rows in as many `synchronous=FULL` commits of the same size, with no
hash chain, no redaction, no idempotence and no index. Variants alternate as processes on one core.
Without `--quick` also a home of 100,000 trajectories, which takes minutes to build.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Check, Result, alternate, main, medians, ratio
from benchmarks.store_mix import mix
from benchmarks.store_variants import GROUP

MANY = 100_000


def _command(name: str, count: int, *more: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.store_variants", name, str(count), *more]


def append(quick: bool) -> Result:
    """Rows per second in groups, and one durable append."""
    count = 1_900 if quick else 6_400
    names = ("log-calls", "bare-calls", "log-episodes", "bare-episodes")
    runs = alternate({name: _command(name, count) for name in names}, 5 if quick else 7)
    found = {name: medians(runs[name]) for name in names}
    rows = [{"who": name, "group": GROUP, **found[name]} for name in names]
    checks = []
    for kind in ("calls", "episodes"):
        ours, bare = f"log-{kind}", f"bare-{kind}"
        share = ratio(runs, ours, bare, "rows_per_second")
        single = ratio(runs, ours, bare, "single_ms")
        checks += [
            Check(f"{kind}: rows per second in groups", found[ours]["rows_per_second"], 10_000),
            Check(f"{kind}: share of bare SQLite's rate", share, 0.2),
            Check(f"{kind}: single append over a bare commit", single, 2.0, at_most=True),
        ]
    return Result(rows, checks)


def look_up(home: Path) -> Result:
    """One task's group and the ten nearest, of `MANY` trajectories."""
    filled = alternate({"fill": _command("fill", MANY, str(home))}, 1, timeout=1800)["fill"][0]
    found = medians(alternate({"read": _command("read", MANY, str(home))}, 5)["read"])
    checks = [
        Check("one task's group, ms", found["group_ms"], 5.0, at_most=True),
        *(
            Check(f"ten nearest ({name}), ms", found[name], 20.0, at_most=True)
            for name in ("search_ms", "search_solved_ms", "search_solved_eval_ms")
        ),
    ]
    return Result([{"who": "home", "trajectories": MANY, **filled, **found}], checks)


def together(home: Path, name: str, seconds: float) -> Result:
    """Four writers and two readers on one home."""
    found: dict[str, Any] = mix(home, seconds)
    bad = found["errors"] + found["never_found"]
    checks = [
        Check(f"{name}: errors and rows never found", bad, 0, at_most=True),
        Check(f"{name}: the last row found after, s", found["found_last_s"], 2.0, at_most=True),
    ]
    return Result([{"who": f"4 writers, 2 readers, {name}", **found}], checks)


def measure(quick: bool) -> Result:
    """All parts."""
    with tempfile.TemporaryDirectory() as folder:
        parts = [append(quick), together(Path(folder) / "new", "new home", 5.0 if quick else 30.0)]
        if not quick:
            many = Path(folder) / "many"
            parts += [look_up(many), together(many, f"home of {MANY}", 30.0)]
    return Result(
        [row for part in parts for row in part.rows],
        [check for part in parts for check in part.checks],
        ("chromadb", "wordllama", "numpy"),
    )


if __name__ == "__main__":
    main("store", measure)
