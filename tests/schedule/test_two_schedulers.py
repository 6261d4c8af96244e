"""Two scheduler processes on one log. The one at work is stopped past its lease and continued, slot
after slot: each slot happens once, and what the stale holder writes is refused."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agentloop.store.log import Log

CHILD = Path(__file__).with_name("scheduler_process.py")
WAIT = 30.0


@dataclass
class Pair:
    """Two processes and all that they said, in order."""

    home: Path
    lease: float
    children: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    said: list[tuple[int, str]] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)

    def start(self) -> None:
        command = [sys.executable, str(CHILD), str(self.home), "100000", str(self.lease)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.children[child.pid] = child
        threading.Thread(target=self._listen, args=(child,), daemon=True).start()

    def _listen(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            with self.news:
                self.said.append((child.pid, line.decode().strip()))
                self.news.notify_all()

    def hear(self, what: Callable[[int, str], bool]) -> tuple[int, str]:
        """The first thing said, ever, that `what` is true of."""
        until = time.monotonic() + WAIT
        with self.news:
            while True:
                for pid, text in self.said:
                    if what(pid, text):
                        return pid, text
                assert self.news.wait(max(0.0, until - time.monotonic())), self.said[-6:]

    def let(self, name: str, pid: int) -> None:
        (self.home / f"go-{name}-{pid}").touch()

    def stop(self, pid: int) -> None:
        """SIGSTOP, not in the middle of a write: SQLite's lock on the file would be stopped with
        it, and nobody could write until it is continued."""
        with closing(sqlite3.connect(self.home / "log.db", timeout=WAIT)) as db:
            db.isolation_level = None
            db.execute("BEGIN IMMEDIATE")
            os.kill(pid, signal.SIGSTOP)
            until = time.monotonic() + WAIT
            while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
                assert time.monotonic() < until
            db.execute("ROLLBACK")

    def end(self) -> None:
        for child in self.children.values():
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()


def stop_and_go(pair: Pair, slots: int) -> Counter[str]:
    """Run `slots` slots, each with its holder stopped past its lease; what was counted."""
    done, counts = set[str](), Counter[str]()
    while len(done) < slots:
        first, text = pair.hear(lambda _, text: text.startswith("in ") and text[3:] not in done)
        name = text[3:]
        pair.stop(first)
        other, _ = pair.hear(lambda pid, text, n=name, f=first: text == f"in {n}" and pid != f)
        pair.let(name, first)  # it writes as soon as it is continued
        os.kill(first, signal.SIGCONT)
        _, said = pair.hear(lambda pid, text, n=name, f=first: pid == f and text == f"refused {n}")
        counts[said.partition(" ")[0]] += 1
        pair.let(name, other)
        done.add(name)
    return counts


def check(tmp_path: Path, slots: int, lease: float) -> None:
    pair = Pair(tmp_path, lease)
    log = Log(tmp_path / "log.db")
    try:
        pair.start()
        pair.hear(lambda _, text: text.startswith("in "))
        pair.start()
        pair.hear(lambda _, text: "standing by" in text)
        counts = stop_and_go(pair, slots)
        # As they were said: by letters a whole second comes after its own fractions.
        said = (text[3:] for _, text in pair.said if text.startswith("in "))
        names = list(dict.fromkeys(said))[:slots]
        until = time.monotonic() + WAIT
        while log.get("slot_ended", f"w/{names[-1]}") is None:
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        pair.end()
    assert counts == {"refused": slots}
    promoted = Counter(key.rpartition("/")[0] for key in log.keys("promotion"))
    assert {name: promoted[name] for name in names} == dict.fromkeys(names, 1)
    assert set(promoted.values()) == {1}
    assert log.verify()[1] == []
    log.close()
    print(f"\n{slots} slots, {counts['refused']} stale holders refused, {len(names)} promotions")


def test_ten_slots_two_schedulers(tmp_path: Path) -> None:
    check(tmp_path, 10, 0.25)


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_a_hundred_slots_two_schedulers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(tmp_path, 100, 0.4)
    with capsys.disabled():
        print("\n100 of 100 stale holders refused, one promotion per slot")
