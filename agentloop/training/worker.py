"""The trainer process: `python -m agentloop.training.worker job.json`.

In: a `TrainingJob` as JSON. Out: what the job's method writes into `job.out`, metric lines on
stdout; exit 0, or 2 when the job itself is wrong, or 1. The last line on stderr says why.
Nothing heavy is imported before the method is resolved.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from agentloop.errors import AgentLoopError, UsageError
from agentloop.records import TrainingJob, TrainingResult
from agentloop.refs import resolve
from agentloop.training.artifact import finished
from agentloop.trajectories import codec

Method = Callable[[TrainingJob], TrainingResult]


def main(arguments: list[str]) -> int:
    """Run the job in the file named by the only argument; the exit code is for the parent."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m agentloop.training.worker JOB.json\n")
        return 2
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    try:
        job = codec.decode(TrainingJob, Path(arguments[0]).read_bytes())
        random.seed(job.seed)
        # Read when torch is imported. Idle threads must sleep: where other processes want the cores
        # (a model server, another lane), spinning made training three times slower.
        os.environ.setdefault("OMP_NUM_THREADS", str(_cores()))
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        method = resolve(job.method)
        if not callable(method):
            raise UsageError(f"`{job.method}` is not a training function")
        if finished(job) is None:
            cast(Method, method)(job)
    except AgentLoopError as error:
        sys.stderr.write(str(error).replace("\n", " ") + "\n")
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _die_with(parent: int) -> None:
    """End when `parent` is gone: a killed run must not leave an hour of training behind."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
