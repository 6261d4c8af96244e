"""The sandbox without walls: it is asked for by name and says so."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from agentloop.errors import SandboxError, UsageError
from agentloop.sandboxes import launched
from agentloop.sandboxes.process import ProcessSandbox
from agentloop.sandboxes.profile import Profile, open_sandbox
from agentloop.workspace import Workspace


def test_it_is_never_had_by_chance(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What other tests ran may have switched off this logger, or what it passes on.
    monkeypatch.setattr(logging.getLogger("agentloop"), "disabled", False)
    monkeypatch.setattr(logging.getLogger("agentloop"), "handlers", [caplog.handler])
    file = tmp_path / "sandboxes" / "mine" / "profile.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("backend: process")
    with pytest.raises(UsageError, match=r"all your rights.*unsafe: true"):
        open_sandbox("mine", Workspace((tmp_path,)))
    file.write_text("backend: monty\nunsafe: true")
    with pytest.raises(UsageError, match="belongs to `process`"):
        open_sandbox("mine", Workspace((tmp_path,)))
    file.write_text("backend: process\nunsafe: true\nmemory_mb: 512")
    with caplog.at_level(logging.WARNING, logger="agentloop"):
        sandbox = open_sandbox("mine", Workspace((tmp_path,)))
    assert "no walls" in caplog.text
    assert asyncio.run(sandbox.run("40 + 2")).stdout == "42\n"


@pytest.mark.parametrize(
    "command", [("/bin/false",), ("/bin/echo", "hello"), ("/nonexistent",), ("/bin/sleep", "60")]
)
def test_what_does_not_start_is_the_sandboxs_fault(
    monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    sandbox = ProcessSandbox(Profile(backend="process", unsafe=True))
    monkeypatch.setattr(launched, "START_SECONDS", 0.3)
    monkeypatch.setattr(launched, "child_arguments", lambda *_: [])
    monkeypatch.setattr("sys._base_executable", command[0])
    with pytest.raises(SandboxError, match="did not start"):
        asyncio.run(sandbox.run("1"))


def test_a_run_that_is_cancelled_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sandbox = ProcessSandbox(Profile(backend="process", unsafe=True, seconds=60, memory_mb=512))

    async def main() -> None:
        task = asyncio.create_task(sandbox.run("import time\ntime.sleep(60)"))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not list(tmp_path.iterdir())

    asyncio.run(main())
