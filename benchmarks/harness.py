"""What all benchmarks share: the JSON they print, the machine they ran on, medians, a mock server,
and variants run alternately, each as a process of its own.

Goes in: a function that gives rows and checks. Comes out: one JSON object `{"name", "machine",
"versions", "rows", "checks"}`, indented for a person. Nothing here judges a machine that is busy:
the load is printed beside the figures.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that variants are ended as well
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
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


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


# --- variants as processes ----------------------------------------------------------------------


def cores() -> tuple[int, int]:
    """(for the server, for the client): the same one twice where there is only one."""
    if sys.platform != "linux":
        return -1, -1
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


@contextmanager
def mock_server(**options: float | str) -> Iterator[str]:
    """The base URL (`http://127.0.0.1:PORT/v1`) of a `benchmarks.mock_server` on the server's core.

    `options` are its flags: `latency_ms=50, turns=6, tool="calculator", ids=32`.
    """
    flags = {"core": cores()[0], **options}
    command = [sys.executable, "-m", "benchmarks.mock_server"]
    for name, value in flags.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield str(json.loads(server.stdout.readline())["base_url"])
        finally:
            server.terminate()


def alternate(
    variants: Mapping[str, Sequence[str]], repeats: int, *, timeout: float = 300.0
) -> dict[str, list[dict[str, Any]]]:
    """Run each command on the client's core, one after the other, `repeats` times around.

    A command prints one JSON object as its last line (see `spent`); gives these by variant.
    Raises `RuntimeError` with what it wrote to stderr for a command that fails or takes longer than
    `timeout` seconds; nothing that it started is left.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, command in variants.items():
            found[name].append(_run(name, command, timeout))
    return found


def _run(name: str, command: Sequence[str], timeout: float) -> dict[str, Any]:
    def pin() -> None:
        if sys.platform == "linux":
            os.sched_setaffinity(0, {cores()[1]})

    # Files, not pipes: what a variant leaves running holds a pipe open, and reading it would wait.
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        with subprocess.Popen(
            command, stdout=out, stderr=err, preexec_fn=pin, start_new_session=True
        ) as process:
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired as error:
                raise RuntimeError(f"{name} took longer than {timeout:g} s") from error
            finally:
                with suppress(ProcessLookupError):  # its group, whose leader it is
                    os.killpg(process.pid, signal.SIGKILL)
        said, errors = (file.seek(0) or file.read() for file in (out, err))
    if process.returncode:
        raise RuntimeError(f"{name} ended with {process.returncode}: {errors[-2000:]}")
    result: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return result


@dataclass
class Spent:
    """Seconds of this process, all its threads, and of the clock."""

    cpu: float = 0.0
    wall: float = 0.0


@contextmanager
def spent() -> Iterator[Spent]:
    """Measure the block: `with spent() as took: ...`, then `took.cpu`, `took.wall`."""
    took = Spent()
    wall, cpu = time.perf_counter(), time.process_time()
    yield took
    took.cpu, took.wall = time.process_time() - cpu, time.perf_counter() - wall


Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""What `alternate` gives."""


def ratio(runs: Runs, above: str, below: str, key: str) -> float:
    """The median over the rounds of one variant's figure over another's of the same round, so that
    a machine that is slower for a while is slower for both."""
    pairs = zip(runs[above], runs[below], strict=True)
    return median([one[key] / other[key] for one, other in pairs])


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median of each number that the runs of one variant gave."""
    numbers = [key for key, value in runs[0].items() if isinstance(value, int | float)]
    return {key: median([run[key] for run in runs]) for key in numbers}
