"""SIGTERM and Ctrl-C end a scheduler within ten seconds: nothing is left behind, all can go on."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stopping
import tiny_workflow

from agentloop.store.archive import Archive

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ALL_DAY = ["--every", "1s", "--missed", "once"]


def strike(folder: Path, home: Path, number: int, rng: random.Random) -> float:
    """Start, wait for its first sign of life and then a random moment, stop."""
    child = stopping.start(folder, home, *ALL_DAY)
    assert child.stderr is not None
    child.stderr.readline()  # "begins" or "going on"
    time.sleep(rng.uniform(0.0, 1.2))
    return stopping.stop(child, SIGNALS[number % 2], home)


def check_slots(home: Path) -> None:
    """Every slot that was begun ended, or is the one that goes on; one cycle for each."""
    with Archive(home) as archive:
        begun, ended = archive.log.keys("slot_begun"), archive.log.keys("slot_ended")
        assert len(set(begun) - set(ended)) <= 1
        assert len(archive.log.keys("cycle")) <= len(begun)


UNTIL = """
import asyncio, sys, time
from agentloop.cli.stop import Stopped, until_stopped

async def work():
    print("at work", flush=True)
    if sys.argv[1] == "hangs":
        time.sleep(30)
    try:
        await asyncio.sleep(30)
    finally:
        await asyncio.sleep(0.01)
        print("in order", flush=True)

try:
    until_stopped(work(), seconds=0.5)
except Stopped as error:
    print(error)
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("how", ["cancelled", "hangs"])
def test_work_is_cancelled_or_given_up(number: signal.Signals, how: str) -> None:
    command = [sys.executable, "-c", UNTIL, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "at work\n"
        child.send_signal(number)
        out, _ = child.communicate(timeout=10)
    if how == "hangs":
        assert (child.returncode, out) == (1, "")
    else:
        assert (child.returncode, out) == (0, f"in order\n{number.name}\n")


@pytest.mark.integration
def test_stopped_at_once_and_later(tmp_path: Path) -> None:
    folder, home, rng = tiny_workflow.make(tmp_path), tmp_path / "home", random.Random(0)
    assert max(strike(folder, home, number, rng) for number in range(2)) < stopping.LIMIT
    stopping.whole(home)
    check_slots(home)


@pytest.mark.integration
@pytest.mark.timeout(1500)
def test_stopped_a_hundred_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, home, rng = tiny_workflow.make(tmp_path), tmp_path / "home", random.Random(1)
    seconds = [strike(folder, home, number, rng) for number in range(100)]
    ended = stopping.whole(home)
    check_slots(home)
    with capsys.disabled():
        print(f"\n100 stops: {max(seconds):.1f} s at most, {len(ended)} slots ended meanwhile")
    assert len(ended) >= 10, "the scheduler got nowhere between the stops"


SLOW = '''

import asyncio, time

def hang(task):
    """A synchronous grader that the event loop waits for."""
    time.sleep(60)
'''


@pytest.mark.integration
def test_a_hung_event_loop_does_not_hold_it_up(tmp_path: Path) -> None:
    """A graph that blocks the loop for a minute: the process ends at its deadline all the same."""
    yaml = tiny_workflow.YAML.replace("  replies: ./parts.py:replies", "  replies: ./parts.py:hang")
    folder = tiny_workflow.make(tmp_path, yaml=yaml, parts=tiny_workflow.PARTS + SLOW)
    home = tmp_path / "home"
    child = stopping.start(folder, home, *ALL_DAY)
    assert child.stderr is not None
    child.stderr.readline()
    time.sleep(1.0)
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=stopping.LIMIT)
    assert time.monotonic() - began < stopping.LIMIT and child.returncode in (0, 1)
    stopping.whole(home)


METHODS = """
import signal, time
from agentloop.training.artifact import publish

def polite(job):
    def write(directory):
        (directory / "adapter_config.json").write_text("{}")
        time.sleep(60)
    publish(job, write, metrics={}, seconds=0.0)

def deaf(job):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    polite(job)
"""


@pytest.mark.integration
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("method", ["polite", "deaf"])
def test_stopped_while_a_trainer_writes(
    tmp_path: Path, number: signal.Signals, method: str
) -> None:
    """Also one that does not listen: it is killed after five seconds."""
    before, _, lanes = tiny_workflow.YAML.partition("lanes:\n")
    policy = lanes[lanes.index("  policy:") :]
    folder, home = tiny_workflow.make(tmp_path, yaml=f"{before}lanes:\n{policy}"), tmp_path / "h"
    (tmp_path / "methods.py").write_text(METHODS)
    script = [str(Path(__file__).with_name("with_trainer.py")), f"{tmp_path}/methods.py:{method}"]
    child = stopping.start(folder, home, *ALL_DAY, script=script)
    wait_for("agentloop.training.worker", child.pid, 60.0)
    until = time.monotonic() + 30
    while not [path for path in home.rglob(".*") if path.is_dir()]:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert stopping.stop(child, number, home) < stopping.LIMIT
    assert stopping.whole(home) == []  # the slot goes on


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_stopped_with_a_model_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real local model, from the start of its server to its work."""
    pytest.importorskip("torch")
    folder, home = tiny_workflow.make(tmp_path), tmp_path / "home"
    seconds, seen = [], 0
    for number in range(6):
        child = stopping.start(folder, home, *ALL_DAY, "--model", "embedded")
        time.sleep(2.0 + 2.5 * number)
        below = [command(pid) for pid in stopping.descendants(child.pid)]
        seen += any("serving.embedded" in one for one in below)
        seconds.append(stopping.stop(child, SIGNALS[number % 2], home))
    with capsys.disabled():
        print(f"\n6 stops, {seen} with a model server at work: {max(seconds):.1f} s at most")
    assert seen >= 3
    stopping.whole(home)


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_for(name: str, parent: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not any(name in command(pid) for pid in stopping.descendants(parent)):
        assert time.monotonic() < until, f"no {name} within {seconds} s"
        time.sleep(0.2)
