"""A power cut at any moment loses no acknowledged row, and the test can tell when one is lost."""

import random
import shutil
import sys
from pathlib import Path

import pytest
from store_power_cut import Disk, record, tool

from agentloop.store.log import Log

pytestmark = pytest.mark.integration
WRITER = """
import os, sys
from pathlib import Path
from agentloop.store.log import Log
from agentloop.store.query import Draft
log = Log(Path(sys.argv[1]))
if sys.argv[2] != "as it is":
    log._db.execute(f"PRAGMA synchronous={sys.argv[2]}")
for n in range(int(sys.argv[3])):
    # Of a size that fills the write-ahead log to its checkpoint (1,000 pages) more than once.
    text = os.urandom(4000).hex()
    log.append([Draft(kind="x", key=f"{n}-{m}", body={"n": n, "text": text}) for m in range(2)])
    os.write(1, f"{n}\\n".encode())
log.close()
"""


def cut_often(tmp_path: Path, how: str, *, cuts: int, appends: int) -> tuple[int, int, int]:
    """(acknowledged rows over all cuts, those of them that were lost, checkpoints seen)."""
    folder = tmp_path / "written"
    folder.mkdir()
    command = [sys.executable, "-c", WRITER, str(folder / "log.db"), how, str(appends)]
    events = record(command, folder, tmp_path / "trace")
    dice, disk = random.Random(0), Disk()
    moments = sorted(dice.randrange(len(events) + 1) for _ in range(cuts))
    acknowledged = lost = done = 0
    for moment in moments:
        for event in events[done:moment]:
            disk.happen(event)
        done = moment
        left = tmp_path / "left"
        left.mkdir()
        disk.cut(left, dice)
        log = Log(left / "log.db")  # as after a restart
        keys, (rows, problems) = set(log.keys("x")), log.verify()
        log.close()
        if how == "NORMAL":  # what is lost is told
            problems = [one for one in problems if "missing at the end" not in one]
        assert problems == [] and rows == len(keys), f"at call {moment} of {len(events)}"
        assert all(f"{key[:-1]}{1 - int(key[-1])}" in keys for key in keys), "half an append"
        expected = {f"{int(n)}-{m}" for n in disk.acknowledged for m in range(2)}
        acknowledged += len(expected)
        lost += len(expected - keys)
        shutil.rmtree(left)
    synced = sum(event.what == "sync" and event.name == "log.db" for event in events)
    return acknowledged, lost, synced


@pytest.fixture(autouse=True)
def _strace() -> None:
    if tool() is None:
        pytest.skip("needs strace, and leave to trace")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "cuts", [200, pytest.param(1000, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_a_power_cut_loses_nothing_that_was_acknowledged(tmp_path: Path, cuts: int) -> None:
    acknowledged, lost, checkpoints = cut_often(tmp_path, "as it is", cuts=cuts, appends=400)
    print(f"{acknowledged} acknowledged rows over {cuts} cuts, {lost} lost")
    assert lost == 0
    assert acknowledged > 100 * cuts and checkpoints > 2, "the test shows nothing"


def test_it_is_seen_when_commits_are_not_synced(tmp_path: Path) -> None:
    acknowledged, lost, _ = cut_often(tmp_path, "NORMAL", cuts=60, appends=400)
    print(f"synchronous=NORMAL: {acknowledged} acknowledged rows over 60 cuts, {lost} lost")
    assert lost > acknowledged / 10
