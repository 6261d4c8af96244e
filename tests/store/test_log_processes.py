"""Several processes on one log: killed at any point, or appending at once."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from agentloop.store.log import Log

WRITER = """
import sys
from pathlib import Path
from agentloop.store.log import Log
from agentloop.store.query import Draft
log = Log(Path(sys.argv[1]))
for n in range(int(sys.argv[3])):
    keys = [f"{sys.argv[2]}-{n}-{m}" for m in range(3)]
    log.append([Draft(kind="x", key=key, body={"n": n, "text": "y" * 500}) for key in keys])
    print(n, flush=True)
log.close()
"""


def start(path: Path, name: str, n: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(n)], stdout=subprocess.PIPE, text=True
    )


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path, dice = tmp_path / "log.db", random.Random(0)
    expected: set[str] = set()
    for round_ in range(5):
        writers = {f"{round_}.{n}": start(path, f"{round_}.{n}", 100_000) for n in range(4)}
        first = dice.choice(list(writers.values())).stdout
        acknowledged = [first.readline()] if first else []  # they are writing by now
        for writer in writers.values():
            time.sleep(dice.uniform(0.0, 0.04))
            os.kill(writer.pid, signal.SIGKILL)
        assert acknowledged == ["0\n"]
        for name, writer in writers.items():
            lines = writer.communicate()[0].split()
            expected |= {f"{name}-{n}-{m}" for n in lines for m in range(3)}
    log = Log(path)
    rows, problems = log.verify()
    assert problems == []
    found = set(log.keys("x"))
    log.close()
    assert expected <= found, "an acknowledged row is gone"
    groups = {key.rpartition("-")[0] for key in found}
    assert rows == len(found) == 3 * len(groups), "half an append was kept"
    assert len(expected) >= 100, "the writers hardly wrote; the test shows nothing"


def test_four_processes_append_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    writers = [start(path, f"p{n}", 60) for n in range(4)]
    assert [writer.communicate(timeout=90) and writer.returncode for writer in writers] == [0] * 4
    log = Log(path)
    assert log.verify() == (4 * 60 * 3, [])
    for name in range(4):  # each writer's rows are in its own order
        mine = [e.key for e in log.read() if e.key.startswith(f"p{name}-")]
        assert mine == [f"p{name}-{n}-{m}" for n in range(60) for m in range(3)]
    log.close()
