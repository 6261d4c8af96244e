"""`kill -9` at random points: nothing acknowledged is lost, nothing is there twice."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentloop.store.log import Log

pytestmark = pytest.mark.integration
AT_ONCE = 4
WRITER = """
import os, sys
from pathlib import Path
from agentloop.store.log import Log
from agentloop.store.query import Draft
log, name, n = Log(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
while True:
    size = 1 + n % 3
    log.append([
        Draft(kind="x", key=f"{name}-{n}-{m}", body={"text": "y" * (n % 7) * 400})
        for m in range(size)
    ])
    os.write(1, f"{n}\\n".encode())
    n += 1
"""


def killed(path: Path, name: str, number: int, dice: random.Random) -> list[int]:
    """Let a writer append from `number` on and kill it; what it acknowledged."""
    command = [sys.executable, "-c", WRITER, str(path), name, str(number)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as writer:
        assert writer.stdout is not None
        first = b""
        if dice.random() < 0.9:
            first = writer.stdout.readline()  # past its start
            time.sleep(dice.uniform(0.0, 0.05))
        else:
            time.sleep(dice.uniform(0.0, 0.6))
        os.kill(writer.pid, signal.SIGKILL)
        return [int(line) for line in (first + writer.stdout.read()).split()]


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "points", [200, pytest.param(1000, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_killed_writers_lose_and_repeat_nothing(tmp_path: Path, points: int) -> None:
    path = tmp_path / "log.db"
    done = {f"writer{number}": 0 for number in range(AT_ONCE)}

    def life(name: str) -> None:
        dice = random.Random(name)
        for _ in range(points // AT_ONCE):
            # From the first append that was not acknowledged, which may be there all the same.
            for number in killed(path, name, done[name], dice):
                assert number == done[name]
                done[name] += 1

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(life, done))
    log = Log(path)
    rows, problems = log.verify()
    found = Counter(entry.key for entry in log.read())
    log.close()
    assert problems == [] and rows == found.total() == len(found), "a row is there twice"
    promised = {
        f"{name}-{n}-{m}" for name, count in done.items() for n in range(count)
        for m in range(1 + n % 3)
    }  # fmt: skip
    assert promised <= found.keys(), "an acknowledged row is gone"
    in_doubt = found.keys() - promised
    allowed = {f"{name}-{count}-{m}" for name, count in done.items() for m in range(3)}
    assert in_doubt <= allowed, "more is there than was sent"
    print(f"{points} kills, {len(promised)} acknowledged rows, 0 lost, 0 twice")
    assert len(promised) > 3 * points, "the writers hardly wrote; the test shows nothing"
