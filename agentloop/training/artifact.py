"""What a training method leaves: one directory, written whole, that also holds its result.

In: a job, and a function that writes what was learned. Out: `job.out` with an adapter
(`adapter_config.json`, `adapter_model.safetensors`) or full weights (`config.json`,
`model.safetensors`), `result.json` and a manifest. The result lies in the same rename as the
weights, so a crash cannot leave one without the other, and a finished job is found again by the
hash of its content.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from agentloop.errors import TrainingError
from agentloop.files import new_directory, read_manifest, sha256_of, write_manifest
from agentloop.records import TrainingJob, TrainingResult, content_id
from agentloop.trajectories import codec

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FULL_CONFIG = "config.json"
FULL_WEIGHTS = "model.safetensors"
KINDS = ({CONFIG, WEIGHTS}, {FULL_CONFIG, FULL_WEIGHTS})
"""What a method may leave: no pickles, no code, no optimizer."""
RESULT = "result.json"


def job_hash(job: TrainingJob) -> str:
    """Identity of what would be learned: everything but where it is written.

    The dataset counts by its content. Raises `StoreError` when it cannot be read.
    """
    data = sha256_of(Path(job.dataset))
    return content_id("job", job.method, job.base, data, job.adapter, job.settings, job.seed)


def finished(job: TrainingJob) -> TrainingResult | None:
    """The result in `job.out` when this job made it, `None` when nothing is there.

    Raises `TrainingError` when another job's result is there, `StoreError` when it is damaged.
    """
    out = Path(job.out)
    if not out.exists():
        return None
    if read_manifest(out).get("job") != job_hash(job):
        raise TrainingError(f"`{out}` holds the result of another job; choose another `out`")
    return codec.decode(TrainingResult, (out / RESULT).read_bytes())


def publish(
    job: TrainingJob, write: Callable[[Path], None], *, metrics: dict[str, float], seconds: float
) -> TrainingResult:
    """Let `write` fill a directory with what was learned, add the result, move it to `job.out`.

    A second process that ran the same job loses the race and returns the first one's result.
    Raises `TrainingError` when `write` left anything but safetensors and JSON.
    """
    try:
        with new_directory(Path(job.out)) as draft:
            write(draft)
            names = {entry.name for entry in draft.rglob("*")}
            if names not in KINDS:
                raise TrainingError(
                    f"a method leaves {CONFIG} and {WEIGHTS}, or {FULL_CONFIG} and {FULL_WEIGHTS}, "
                    f"not {', '.join(sorted(names)) or 'nothing'}"
                )
            weights = WEIGHTS if WEIGHTS in names else FULL_WEIGHTS
            result = TrainingResult(
                adapter=job.out,
                sha256=sha256_of(draft / weights),
                metrics=metrics,
                seconds=seconds,
            )
            (draft / RESULT).write_bytes(codec.encode(result))
            write_manifest(draft, {"job": job_hash(job)})
        return result
    except FileExistsError:
        first = finished(job)
        if first is None:
            raise
        return first


def report(**metrics: float) -> None:
    """Tell the parent process how far it is: one JSON line on stdout (`step`, `steps`, `loss`…)."""
    sys.stdout.write(json.dumps(metrics) + "\n")
    sys.stdout.flush()


def peak_rss() -> float:
    """The most memory this process held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)  # Linux counts in KiB
