"""A budget of seconds is one for all processes that work on a run."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import tiny_workflow

from agentloop.cli import run
from agentloop.records import Completion, Message, Usage
from agentloop.store.archive import Archive
from agentloop.workflows.seconds import counted, killed

PARTS = """\
import time
from pathlib import Path


def replies(request):
    with (Path(__file__).parent / "calls.txt").open("a") as file:
        file.write(".")
    time.sleep(0.06)
    return "Answer: 42"
"""


def test_a_run_that_is_resumed_has_no_new_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml = tiny_workflow.YAML + "concurrency: 1\nbudget: {seconds: 1}\n"
    folder = tiny_workflow.make(tmp_path, yaml=yaml, parts=PARTS)
    command = ["run", "tiny", "--n", "24", "--workspace", str(tmp_path),
               "--home", str(tmp_path / "home")]  # fmt: skip

    def calls() -> int:
        made = folder / "calls.txt"  # a machine that is busy may need all the time to begin
        return len(made.read_text()) if made.exists() else 0

    assert run(command) == 3 and (first := calls()) < 24
    for _ in range(2):
        capsys.readouterr()
        assert run([*command, "--resume"]) == 3
        assert "budget of 1 seconds is reached" in capsys.readouterr().err
    assert calls() == first
    assert run([*command, "--resume", "--set", "budget.seconds=60"]) == 0
    assert calls() == 24


def test_processes_that_were_killed_are_those_that_another_followed(tmp_path: Path) -> None:
    with Archive(tmp_path) as archive:
        processes = [counted(archive, "r") for _ in range(4)]
        for process, ends in zip(processes, (True, False, False, True), strict=True):
            process.__enter__()
            if ends:
                process.__exit__(None, None, None)
        assert killed(archive, "r") == 2
        with counted(archive, "r"):
            assert killed(archive, "r") == 2
        assert killed(archive, "s") == 0
        for process in processes[1:3]:
            process.__exit__(None, None, None)


def test_what_a_killed_process_used_up_to_its_last_call_or_stage(tmp_path: Path) -> None:
    reply = Completion(
        message=Message(role="assistant", content="x"), finish_reason="stop", model="m",
        usage=Usage(calls=1),
    )  # fmt: skip
    pause = 0.15
    with Archive(tmp_path) as archive:
        first = counted(archive, "r")
        assert first.__enter__() == 0.0
        time.sleep(pause)
        asyncio.run(archive.add_call("ep/0", reply, scope="r"))
        time.sleep(pause)
        archive.add_step("r", "collect", True)
        archive.add_step("other", "collect", True)
        asyncio.run(archive.add_call("other/0", reply, scope="other"))
        time.sleep(4 * pause)  # nothing was finished after that
        with counted(archive, "r") as before:
            assert 2 * pause <= before < 4 * pause
            time.sleep(pause)
        time.sleep(4 * pause)  # nobody worked on it
        with pytest.raises(KeyError), counted(archive, "r") as later:
            assert before + pause <= later < before + 3 * pause
            raise KeyError
        with counted(archive, "s") as other:
            assert other == 0.0
        first.__exit__(None, None, None)
