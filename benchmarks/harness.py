"""What all benchmarks share: the JSON they print, the machine they ran on, medians.

Goes in: a function that gives rows and checks. Comes out: one JSON object `{"name", "machine",
"versions", "rows", "checks"}`, or a table for a person. Nothing here judges a machine that is busy:
the load is printed beside the figures.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Check:
    """A figure beside its target; `value >= target` unless `at_most`."""

    name: str
    value: float
    target: float
    at_most: bool = False

    @property
    def ok(self) -> bool:
        """Whether the target is met."""
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass
class Result:
    """What one benchmark gives."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    packages: Sequence[str] = ()


def main(name: str, measure: Callable[[bool], Result]) -> None:
    """Parse `--quick` and `--json`, measure, print; exit 1 when a check fails."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="end within 60 s")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    result = measure(given.quick)
    document = {
        "name": name, "machine": machine(), "versions": versions(result.packages),
        "rows": result.rows,
        "checks": [{**_public(check), "ok": check.ok} for check in result.checks],
    }  # fmt: skip
    if given.json:
        print(json.dumps(document))
    else:
        print(json.dumps(document, indent=1))
    sys.exit(0 if all(check.ok for check in result.checks) else 1)


def _public(check: Check) -> dict[str, Any]:
    shown = asdict(check)
    shown.pop("at_most")
    return shown


def machine() -> dict[str, Any]:
    """Processor, cores, load and system."""
    model = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((one.split(":", 1)[1].strip() for one in lines if "model name" in one), "")
    return {"cpu": model, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2),
            "system": platform.platform(), "python": platform.python_version()}


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions; absent ones are named as such."""
    found = {}
    for name in ("agentloop", *packages):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def median(values: Sequence[float]) -> float:
    """Rounded to four digits, for the JSON."""
    return float(f"{statistics.median(values):.4g}")
