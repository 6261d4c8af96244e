"""The worker process: results, errors, deadlines, secrets, and who dies when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from agentloop.errors import GraderError
from agentloop.rewards.isolated import TooCostly, Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


# Called in the worker.
def echo(**arguments: object) -> object:
    print("not a reply")
    return arguments


def fail() -> None:
    raise KeyError("lost")


def leave() -> None:
    os._exit(3)


def environment() -> dict[str, str]:
    return dict(os.environ)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def test_results_errors_and_prints(worker: Worker) -> None:
    assert worker.call("test_isolated:echo", {"a": [1, None]}, seconds=5) == {"a": [1, None]}
    with pytest.raises(GraderError, match=r"test_isolated:fail` failed: KeyError: 'lost'"):
        worker.call("test_isolated:fail", {}, seconds=5)
    with pytest.raises(GraderError, match="no module `no_such_module`"):
        worker.call("no_such_module:f", {}, seconds=5)
    with pytest.raises(GraderError, match="ended with status 3"):
        worker.call("test_isolated:leave", {}, seconds=5)
    assert worker.call("test_isolated:echo", {}, seconds=5) == {}


def test_a_deadline_ends_the_call_and_a_killed_worker_is_replaced(worker: Worker) -> None:
    with pytest.raises(TooCostly):
        worker.call("test_isolated:sleep", {"seconds": 60}, seconds=0.2)
    worker.call("test_isolated:echo", {}, seconds=5)
    assert worker._process is not None
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    assert worker.call("test_isolated:echo", {"x": 1}, seconds=5) == {"x": 1}


def test_it_gets_no_secrets(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    seen = worker.call("test_isolated:environment", {}, seconds=5)
    assert isinstance(seen, dict)
    assert "OPENAI_API_KEY" not in seen and "PYTHONPATH" in seen


def test_it_ends_with_its_parent() -> None:
    code = (
        "from agentloop.rewards.isolated import shared\n"
        "process = shared._running(); print(process.pid, flush=True)\n"
        "import os; os._exit(9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    pid = int(done.stdout)
    for _ in range(100):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its parent")
