"""A sandbox without walls, to see that attempts can succeed: all of the host, nothing taken away.

Only `bwrap`'s own mount namespace is left, so that no mistake of an attempt outlives its run.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile

from agentloop.records import SandboxResult

HAS_BWRAP = shutil.which("bwrap") is not None


class OpenSandbox:
    """A `ports.Sandbox` whose code has the rights, variables and open files of this process."""

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds

    async def run(self, code: str) -> SandboxResult:
        return await asyncio.to_thread(self._run, code)

    async def close(self) -> None:
        pass

    def _run(self, code: str) -> SandboxResult:
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as printed:
            walls = ["bwrap", "--bind", "/", "/", "--dev-bind", "/dev", "/dev", "--chdir", folder]
            if not os.geteuid():
                walls += ["--cap-add", "ALL"]
            # A file and no pipe: what is left behind would hold a pipe open.
            subprocess.run(
                [*walls, sys.executable, "-I", "-S", "-u", "-"],
                input=code.encode(),
                stdout=printed,
                stderr=subprocess.DEVNULL,
                close_fds=False,
                timeout=self.seconds,
            )
            printed.seek(0)
            return SandboxResult(stdout=printed.read())
