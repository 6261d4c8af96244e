"""`kill -9` at more than twenty points of a cycle: it finishes as if nothing had happened.

The endpoint is in this process. It numbers its replies (as the model's name), so the journal in
the log says which reply was kept, and it kills the child at seeded moments: at a call, a little
after one, or while the child starts.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import small_cycle
from fake_endpoint import FakeEndpoint, Reply

from agentloop.store.archive import Archive
from agentloop.store.query import Query

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

KILLS = 23
CONCURRENCY = 8


@dataclass
class Killer:
    """The endpoint's script. Each reply is numbered. At `at` calls, those made again not counted,
    it kills `child`, `after` seconds later (0: before that call is answered)."""

    wanted: Counter[str] = field(default_factory=Counter)
    """How often each payload is asked in an undisturbed cycle."""
    world: Any = field(default_factory=small_cycle.world)
    payloads: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    progress: int = 0
    child: subprocess.Popen[bytes] | None = None
    at: int = 0
    after: float = 0.0

    def __call__(self, payload: dict[str, Any]) -> Reply:
        text = json.dumps(payload, sort_keys=True)
        self.payloads.append(text)
        self.seen[text] += 1
        self.progress += self.seen[text] <= self.wanted[text]
        if self.child is not None and self.progress >= self.at:
            self.kill()
        body = {**self.world(payload), "model": f"reply-{len(self.payloads) - 1}"}
        return Reply(body, delay=random.Random(text).uniform(0.0, 0.02))

    def kill(self) -> None:
        child, self.child = self.child, None  # once
        if child is None:
            return
        if self.after:
            threading.Timer(self.after, child.kill).start()  # not when it has ended by itself
        else:
            child.kill()


@dataclass
class Snapshot:
    """What is on the disk, and how many calls the endpoint had seen."""

    calls: int
    journal: dict[str, int]
    """Key of a model call -> number of the reply that was kept."""
    episodes: dict[str, str]
    begun: bool
    finished: bool


def look(home: Path, calls: int) -> Snapshot:
    if not (home / "log.db").exists():
        return Snapshot(calls, {}, {}, False, False)
    archive = Archive(home)
    read = {
        kind: {entry.key: entry.body for entry in archive.read(Query(kinds=(kind,)))}
        for kind in ("call", "episode", "step", "cycle")
    }
    archive.close()
    return Snapshot(
        calls=calls,
        journal={key: int(body["model"].split("-")[1]) for key, body in read["call"].items()},  # type: ignore[index,call-overload,union-attr]
        episodes={key: json.dumps(body, sort_keys=True) for key, body in read["episode"].items()},
        begun=bool(read["cycle"]),
        finished=any(key.endswith("/report") for key in read["step"]),
    )


def start(folder: Path, home: Path, fake: FakeEndpoint, out: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OPENAI_BASE_URL": fake.base_url, "OPENAI_API_KEY": "sk-mine"}
    with out.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "agentloop", "cycle", str(folder), "--seed", "5", "--resume",
             "--json", "--home", str(home)],
            stdout=file, stderr=subprocess.PIPE, env=environment, cwd=folder,
        )  # fmt: skip


def finish(child: subprocess.Popen[bytes]) -> int:
    _, errors = child.communicate(timeout=120)
    assert child.returncode in (0, -signal.SIGKILL), errors.decode()
    return child.returncode


def timeless(report: dict[str, Any]) -> dict[str, Any]:
    lanes = {
        name: {key: value for key, value in lane.items() if key != "seconds"}
        for name, lane in report["lanes"].items()
    }
    return {**{key: value for key, value in report.items() if key != "cost"}, "lanes": lanes}


@dataclass
class Attack:
    """One cycle, killed again and again."""

    folder: Path
    home: Path
    killer: Killer
    fake: FakeEndpoint
    snapshots: list[Snapshot] = field(default_factory=list)

    def strike(self, at: int, after: float, early: float | None = None) -> bool:
        """Run until the cycle is `at` calls far, and `after` more seconds, but no longer than
        `early` seconds; whether the child was killed before the cycle had ended."""
        self.killer.at, self.killer.after = at, after
        child = start(self.folder, self.home, self.fake, self.home.with_suffix(".json"))
        self.killer.child = child
        timer = threading.Timer(early or 3600, child.kill)
        timer.start()
        killed = finish(child) == -signal.SIGKILL
        timer.cancel()
        self.killer.child = None
        time.sleep(0.05)  # what was under way at the endpoint is over
        now = look(self.home, len(self.killer.payloads))
        self.snapshots.append(now)
        return killed and now.begun and not now.finished


def test_killed_at_more_than_twenty_points_it_pays_and_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_cycle.write(tmp_path / "small")
    undisturbed, calm = Killer(), tmp_path / "calm"
    with FakeEndpoint(undisturbed) as fake:
        out = tmp_path / "calm.json"
        assert finish(start(folder, calm, fake, out)) == 0
    expected = json.loads(out.read_text())
    total = len(undisturbed.payloads)
    assert expected["state"] == "promoted" and expected["lanes"]["skills"]["effect"] is not None
    assert len(look(calm, total).journal) == total

    rng = random.Random(0)
    killer = Killer(wanted=Counter(undisturbed.payloads))
    with FakeEndpoint(killer) as fake:
        attack, struck = Attack(folder, tmp_path / "home", killer, fake), 0
        for number in range(KILLS):
            # Spread over what is left: a faster machine gets further before it is hit.
            step = 2 * (total - killer.progress) // (KILLS + 1 - number)
            at = killer.progress + rng.randint(1, max(1, step))
            # One in three a little after a call, one in eight perhaps before the first.
            after = 0.0 if number % 3 else rng.uniform(0.001, 0.05)
            early = rng.uniform(0.5, 2.0) if number % 8 == 4 else None
            struck += attack.strike(at, after, early)
        for after in (0.0, 0.03, 0.1):  # around the last call and in what follows it
            if not attack.snapshots[-1].finished:
                struck += attack.strike(total, after)
        out = tmp_path / "home.json"
        assert finish(start(folder, attack.home, fake, out)) == 0
        report = json.loads(out.read_text())
    end = look(attack.home, len(killer.payloads))

    lost = check_accounts(attack.snapshots, end, killer.payloads, undisturbed.payloads)
    with capsys.disabled():
        print(
            f"\n{struck} kills in mid-cycle, {total} calls undisturbed, {end.calls} in all, "
            f"{lost} of them in flight when killed"
        )
    assert struck >= 20
    assert timeless(report) == timeless(expected)
    for snapshot in attack.snapshots:
        assert snapshot.episodes.items() <= end.episodes.items()
    verify = [sys.executable, "-m", "agentloop", "store", "verify", "--json"]
    done = subprocess.run([*verify, "--home", str(attack.home)], capture_output=True, check=True)
    assert json.loads(done.stdout)["ok"] is True


def check_accounts(
    snapshots: list[Snapshot], end: Snapshot, payloads: list[str], undisturbed: list[str]
) -> int:
    """Every call that the endpoint saw was kept for good or in flight at a kill, and none was made
    of which the reply was kept already. Returns how many were in flight."""
    wanted = Counter(undisturbed)
    before, lost = Snapshot(0, {}, {}, False, False), 0
    for now in (*snapshots, end):
        assert before.journal.items() <= now.journal.items()  # a kept reply stays
        kept = Counter(payloads[number] for number in before.journal.values())
        made = Counter(payloads[before.calls : now.calls])
        for payload, times in made.items():
            assert kept[payload] + times <= wanted[payload], f"paid twice: {payload[:300]}"
        new = set(now.journal.values()) - set(before.journal.values())
        in_flight = set(range(before.calls, now.calls)) - new
        assert len(in_flight) <= (0 if now is end else CONCURRENCY)
        lost += len(in_flight)
        before = now
    assert end.calls == len(end.journal) + lost
    assert Counter(payloads[number] for number in end.journal.values()) == wanted
    return lost
