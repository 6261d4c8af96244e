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
    path, dice, total = tmp_path / "log.db", random.Random(0), 0
    expected: set[str] = set()
    code = WRITER.replace("log = Log", "print('up', flush=True)\nlog = Log")
    for point in range(20):
        writer = subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(point), "100000"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert writer.stdout is not None and writer.stdout.readline() == "up\n"
        time.sleep(dice.uniform(0.0, 0.06))
        os.kill(writer.pid, signal.SIGKILL)
        lines = writer.communicate()[0].split()
        acknowledged = [int(line) for line in lines]
        total += len(acknowledged)
        expected |= {f"{point}-{n}-{m}" for n in acknowledged for m in range(3)}
        log = Log(path)
        assert log.verify()[1] == []
        found = set(log.keys("x"))
        log.close()
        assert expected <= found, "an acknowledged row is gone"
        groups = {key.rpartition("-")[0] for key in found}
        assert len(found) == 3 * len(groups), "half an append was kept"
    assert total >= 100, "the writers hardly wrote; the test shows nothing"


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
