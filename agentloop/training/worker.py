"""The trainer process: `python -m agentloop.training.worker job.json`.

In: a `TrainingJob` as JSON. Out: what the job's method writes into `job.out`, metric lines on
stdout; exit 0, or 2 when the job itself is wrong, or 1. The last line on stderr says why, also
when memory ran out. Nothing heavy is imported before the method is resolved.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
import traceback
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
    die_with_parent()
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
    except Exception as error:
        if not out_of_memory(error):
            raise  # the traceback is for the log, its last line for the caller
        traceback.print_exc()
        first = str(error).strip().partition("\n")[0]
        sys.stderr.write(f"{_NO_MEMORY} ({first or type(error).__name__})\n")
        return 1
    return 0


_NO_MEMORY = "memory ran out; lower `tokens_at_once`, `batch_size` or `max_length`"


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says so, on the CPU or on an accelerator. PyTorch's allocator on the CPU has
    no type for it."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    said = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return said or bool(kinds & {"MemoryError", "OutOfMemoryError"})


def _cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def die_with_parent() -> None:
    """Watch, from a thread, for the end of the process that started this one."""
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()


def _die_with(parent: int) -> None:
    """End when `parent` is gone: a killed run must not leave an hour of training behind."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
