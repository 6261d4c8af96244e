"""`results.json`: what was measured, by which code, and whether that is still today's code.

Goes in: a workflow folder. Comes out: `Results`, and per check a `CheckResult` with its spread over
seeds. What decides a result is hashed from files, so no version number has to be remembered.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import operator
import os
import statistics
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agentloop.errors import UsageError
from agentloop.workflows.load import Loaded
from agentloop.workflows.schema import Check

_OPS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_PROSE = {"title", "claim", "seed_paper", "faithful", "reduced", "checks"}
_LATER = {"command", "rate", "retries", "fallbacks", "cache", "probes", "serve", "world"}
"""Keys that came after the first results: a workflow without them is what it was."""


@dataclass(frozen=True)
class CheckResult:
    """One check over its seeds."""

    id: str
    tier: str
    metric: str
    op: str
    bar: float
    values: dict[str, float]
    """Seed -> value."""
    seconds: float
    source: str
    stale: bool
    """Some value was measured by other code than today's."""

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values.values())

    @property
    def ok(self) -> bool:
        """Whether every seed meets the bar: a mean would hide the one that does not."""
        return bool(self.values) and all(
            _OPS[self.op](value, self.bar) for value in self.values.values()
        )

    def met(self) -> str:
        """For a table: whether the bar is met, and whether that is still known."""
        if not self.values:
            return "not run"
        return ("yes" if self.ok else "no") + (", stale" if self.stale else "")

    def as_json(self) -> dict[str, Any]:
        """All of it, for `agentloop check --json`."""
        return {**asdict(self), "ok": self.ok}

    def summary(self) -> str:
        """Mean and spread."""
        if not self.values:
            return "not run"
        low, high = min(self.values.values()), max(self.values.values())
        spread = (
            f" ({low:.3g} to {high:.3g}, {len(self.values)} seeds)" if len(self.values) > 1 else ""
        )
        return f"{self.mean:.3g}{spread}"


@dataclass
class Results:
    """The file. `runs` maps `measure|ablation|seed` to what one run gave."""

    path: Path
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Results:
        """The folder's results; empty when there is no file."""
        path = folder / "results.json"
        if not path.is_file():
            return cls(path)
        try:
            return cls(path, json.loads(path.read_text(encoding="utf-8"))["runs"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"`{path}` is damaged ({error}); delete it and run the checks"
            ) from error

    def write(self) -> None:
        """Atomically, sorted, so that a diff shows what changed."""
        text = json.dumps({"runs": self.runs}, indent=1, sort_keys=True) + "\n"
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".results-")
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        os.chmod(name, 0o644)
        os.replace(name, self.path)

    def result(self, check: Check, current: str) -> CheckResult:
        """One check's values over its seeds; those measured by other code are marked stale."""
        values, seconds, stale = {}, 0.0, False
        for seed in check.seeds:
            run = self.runs.get(run_key(check, seed))
            if run is None or check.metric not in run["metrics"]:
                continue
            values[str(seed)] = float(run["metrics"][check.metric])
            seconds += run["seconds"]
            stale = stale or run["hash"] != current
        return CheckResult(
            id=check.id, tier=check.tier, metric=check.metric, op=check.op, bar=check.bar,
            values=values, seconds=seconds, source=check.source, stale=stale,
        )  # fmt: skip


def run_key(check: Check, seed: int) -> str:
    """Checks with the same measure, ablation and seed share one run."""
    return f"{check.use or 'cycle'}|{check.ablation or ''}|{seed}"


def digest(loaded: Loaded) -> str:
    """Hash of what decides the results: the workflow but its prose, the files beside it, its graph,
    the modules of its parts, and the shipped modules it names. Raises `UsageError` when one of
    them is not there."""
    spec = loaded.spec
    state = hashlib.blake2b(digest_size=8)
    left_out = _PROSE | (_LATER - spec.model_fields_set)
    kept = {k: v for k, v in spec.model_dump(mode="json").items() if k not in left_out}
    state.update(json.dumps(kept, sort_keys=True).encode())
    files = [
        path
        for path in loaded.folder.iterdir()
        if path.suffix in (".py", ".jsonl") or f"./{path.name}" in spec.command
    ]
    graph = loaded.folder.parent.parent / "graphs" / f"{spec.graph}.py"
    for path in (*sorted(files), graph):
        if path.is_file():
            state.update(path.name.encode() + b"\0" + path.read_bytes())
    parts = [spec.tasks, spec.reward, spec.collect, spec.gate, *spec.lanes.values()]
    parts += filter(None, [spec.world])
    named = {reference.rpartition(":")[0] for reference in (spec.graph, *(p.use for p in parts))}
    shipped = {module for module in named if module and not module.endswith(".py")}
    for module in sorted(shipped.union(spec.modules)):
        state.update(module.encode() + b"\0" + _source(module))
    return state.hexdigest()


def _source(module: str) -> bytes:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None:
        raise UsageError(f"there is no module `{module}`; correct the workflow that names it")
    return Path(found.origin).read_bytes()
