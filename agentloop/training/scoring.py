"""A reward model for those who sample and reward: rows in, scores out, from a process of its own.

In: the base model, a reward model's directory, rows. Out: one number per row, higher for better.
The process starts with the first rows, stays up between calls, and ends with `close` or with this
process. No torch here.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from agentloop.errors import TrainingError, UsageError
from agentloop.records import Row
from agentloop.training.job import ENVIRONMENT, end_group
from agentloop.trajectories import codec

_LONGEST_LINE = 1 << 26
_AT_ONCE = 256
"""Rows sent together: a deadline holds for so many."""


class RewardModel:
    """`async with RewardModel(base, directory) as model: scores = await model.score(rows)`."""

    def __init__(self, base: Path, directory: Path, *, deadline: float = 600.0) -> None:
        """`deadline`, in seconds, is for starting and for each 256 rows."""
        self.base, self.directory, self.deadline = base, directory, deadline
        self._process: Process | None = None
        self._log: IO[bytes] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def __aenter__(self) -> RewardModel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def score(self, rows: Sequence[Row]) -> list[float]:
        """One score per row, in order, unbounded; a logistic of it is the chance to be preferred to
        an answer that scores 0.

        Raises `UsageError` on malformed rows or a directory that is no reward model,
        `TrainingError` when the process fails or passes its deadline.
        """
        found: list[float] = []
        async with self._one_at_a_time:
            for at in range(0, len(rows), _AT_ONCE):
                some = [codec.to_json(row) for row in rows[at : at + _AT_ONCE]]
                found += await self._ask(json.dumps(some).encode() + b"\n")
        return found

    async def close(self) -> None:
        """End the process; idempotent."""
        if self._process is not None:
            await end_group(self._process)
        if self._log is not None:
            self._log.close()
        self._process = self._log = None

    async def _ask(self, line: bytes) -> list[float]:
        try:
            async with asyncio.timeout(self.deadline):
                if self._process is None:
                    await self._start()
                assert self._process is not None and self._process.stdin is not None
                self._process.stdin.write(line)
                await self._process.stdin.drain()
                reply = await self._read()
        except TimeoutError:
            await self.close()
            raise TrainingError(
                f"the reward model did not answer within {self.deadline:g} s"
            ) from None
        except ConnectionError:
            raise await self._died() from None
        except asyncio.CancelledError:
            await self.close()  # an answer that nobody reads would be taken for the next one's
            raise
        if "error" in reply:
            raise UsageError(str(reply["error"]))
        return [float(value) for value in reply["scores"]]

    async def _start(self) -> None:
        if not self.directory.is_dir():
            raise UsageError(f"`{self.directory}` is no reward model; train one first")
        self._log = TemporaryFile()  # noqa: SIM115
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agentloop.training.score_worker",
            str(self.base), str(self.directory), stdin=PIPE, stdout=PIPE, stderr=self._log,
            limit=_LONGEST_LINE, start_new_session=True,
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **ENVIRONMENT},
        )  # fmt: skip
        await self._read()

    async def _read(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise await self._died()
        reply: dict[str, Any] = json.loads(line)
        return reply

    async def _died(self) -> TrainingError | UsageError:
        """What to raise when the process has ended, with its last line."""
        assert self._process is not None and self._log is not None
        code = await self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        await self.close()
        last = lines[-1] if lines else "no output"
        if code == 2:
            return UsageError(last)
        return TrainingError(f"the reward model's process ended with {code}: {last}")
