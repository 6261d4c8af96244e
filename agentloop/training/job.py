"""Run a training job in a process of its own, and end that process whatever happens.

In: a `TrainingJob`. Out: the `TrainingResult` that its method wrote into `job.out`. The process
has its own session, so that it and all that it starts can be ended together; it is ended on
cancellation and at the deadline, and ends itself when this process dies. `<out>.job/` keeps
`job.json` and `log.txt`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from agentloop.errors import StoreError, TrainingError, UsageError
from agentloop.files import discard_drafts
from agentloop.ports import Progress, silent
from agentloop.records import TrainingJob, TrainingResult
from agentloop.training.artifact import finished
from agentloop.trajectories import codec
from agentloop.trajectories.redact import Redactor
from agentloop.trajectories.redacted_log import RedactedLines

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "offline",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
"""Added to the trainer's environment: nothing may reach out."""

_GRACE = 5.0
"""Seconds between asking the process group to end and killing it."""
_LONGEST_LINE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ProcessTrainer:
    """The `Trainer` port; `deadline` in seconds holds for the whole job."""

    deadline: float = 3600.0
    progress: Progress = silent

    async def train(self, job: TrainingJob) -> TrainingResult:
        """Run `job` to its end; the same job, finished before, is returned and not repeated.

        Raises `UsageError` when the job is wrong (unknown setting, missing dataset),
        `TrainingError` when the process fails (a damaged dataset, no memory, a guard), is killed,
        or passes its deadline. Then nothing is in `job.out`, and the same job may be run again.
        """
        if done := finished(job):
            return done
        directory, order = Path(f"{job.out}.job"), codec.to_json(job)
        if Redactor.from_environment()(order) is not order:
            raise UsageError(
                "the trainer's settings hold what looks like a secret; give it by the environment"
            )
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "job.json").write_bytes(codec.encode(job))
            log = (directory / "log.txt").open("wb")
        except OSError as error:
            raise StoreError(f"`{directory}` cannot be written: {error.strerror}") from error
        try:
            with log:
                code, last = await self._run(directory / "job.json", log)
        finally:  # a worker that was killed, now or with an earlier process, left its draft
            discard_drafts(Path(job.out))
        if code == 2:
            raise UsageError(last)
        if code != 0:
            raise TrainingError(f"{_ended(code)}: {last or 'no output'} (log: {log.name})")
        result = finished(job)
        if result is None:
            raise TrainingError(f"the trainer left no result in `{job.out}` (log: {log.name})")
        return result

    async def _run(self, job_file: Path, log: IO[bytes]) -> tuple[int, str]:
        """Exit code and last line of the worker."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agentloop.training.worker", str(job_file),
            stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=STDOUT, limit=_LONGEST_LINE,
            start_new_session=True, env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip
        try:
            async with asyncio.timeout(self.deadline):
                last = await self._follow(process, log)
                return await process.wait(), last
        except TimeoutError:
            raise TrainingError(
                f"the trainer was stopped at its deadline of {self.deadline:g} s (log: {log.name})"
            ) from None
        finally:
            await end_group(process)

    async def _follow(self, process: Process, log: IO[bytes]) -> str:
        """Copy the output to the log, pass metrics on, and return the last other line."""
        assert process.stdout is not None
        last: deque[str] = deque(maxlen=1)
        clean = RedactedLines(Redactor.from_environment())
        async for said in process.stdout:
            line = clean(said)
            log.write(line)
            log.flush()
            text = line.decode(errors="replace").strip()
            if text and not self._metrics(text):
                last.append(text)
        return last[0] if last else ""

    def _metrics(self, line: str) -> bool:
        """Report a metric line; false when it is something else."""
        if not line.startswith("{"):
            return False
        try:
            metrics = json.loads(line)
            step, steps = int(metrics["step"]), int(metrics["steps"])
            note = f"loss {float(metrics['loss']):.3f}"
        except (ValueError, KeyError, TypeError):
            return False
        self.progress("train", step, steps, note)
        return True


async def end_group(process: Process) -> None:
    """End a worker's process group, first politely. Its leader is not yet reaped or just was, so
    the group id cannot have been given to another."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        if process.returncode is not None:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(process.wait()), _GRACE)


def _ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return "the trainer was killed (out of memory?)"
    if code < 0:
        return f"the trainer died of signal {-code}"
    return f"the trainer ended with exit code {code}"
