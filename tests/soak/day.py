"""A simulated day: a scheduler process, an endpoint with faults, and a saboteur.

`Day.run(hours)` starts the real scheduler on a clock of its own, kills it once in each hour, fills
its disk once and sets its clock once; `check` then counts what was lost and what happened twice.
"""

from __future__ import annotations

import json
import os
import queue
import random
import re
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from day_process import HOUR, FileClock
from fake_endpoint import FakeEndpoint, Reply
from rule_world import RuleWorld, write_rows

from agentloop.store.archive import Archive
from agentloop.store.query import Query

CHILD = Path(__file__).with_name("day_process.py")
FAULTS = 0.05
ENDED = re.compile(r": cycle-\w+ (kept|promoted|failed)\b")
BEGIN = 1_790_000_000.0
WORKFLOW = """\
title: A day
model: endpoint
tasks: {{use: "agentloop.tasks.files:Jsonl", path: ./rules.jsonl}}
graph: react
tools: [python]
instruction: "Keep these rules in mind: RULE-00 RULE-01 RULE-02 RULE-03"
reward: {{use: "agentloop.rewards.function:Function", grade: ./grader.py:grade}}
collect: {{use: "agentloop.lanes.collect:Explore", rounds: 2, tasks: {tasks}, samples: 1,
  practice: {practice}}}
lanes:
  instructions: {{use: "agentloop.lanes.instructions:EvolveInstruction", rollouts: 24, dev: 6,
    minibatch: 3, proposals: 1, patience: 1, lessons: 1}}
  skills: agentloop.lanes.skills:InduceSkills
heldout: {{n: 12, lanes: 8}}
limits: {{turns: 4, tokens: 2000, seconds: 60}}
concurrency: 16
"""


class Faulty:
    """The rule world, of whose replies one in twenty is a fault of the API."""

    def __init__(self, seed: int) -> None:
        self.world = RuleWorld(tool="python", arguments={"code": "print(6 * 7)"})
        self.rng = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.calls = 0

    def __call__(self, payload: dict[str, Any]) -> Any:
        self.calls += 1
        if self.rng.random() >= FAULTS:
            return self.world(payload)
        kind = self.rng.choice(("429", "500", "503", "cut", "garbage"))
        self.faults[kind] += 1
        if kind == "cut":
            return Reply(cut=True)
        if kind == "garbage":
            return Reply("{not json")
        return Reply({"error": {"message": "busy"}}, status=int(kind), headers={"Retry-After": "0"})


def write_workflow(folder: Path, *, runs: int) -> Path:
    """A workflow whose cycles make some `runs` rollouts or more."""
    import shutil

    from agentloop.cli import start

    folder.mkdir(parents=True)
    shutil.copy(Path(start.__file__).parent / "starter" / "grader.py", folder)
    tasks = int(runs * 0.5)
    text = WORKFLOW.format(tasks=tasks, practice=int(runs * 0.3))
    (folder / "workflow.yaml").write_text(text)
    write_rows(folder / "rules.jsonl", int(runs * 1.6), rules=8, needs=2)
    return folder


@dataclass
class Day:
    """One home, one folder, one clock."""

    root: Path
    runs: int
    seed: int = 0
    kills: int = 0
    disks: int = 0
    jumps: int = 0
    refused: int = 0
    """Times that the scheduler said that its log could not be written."""
    tries: list[str] = field(default_factory=list)
    seen: dict[str, set[str]] = field(default_factory=dict)
    """Kind -> keys that the log had at some kill."""
    samples: list[Mapping[str, int]] = field(default_factory=list)
    """What the process held when a slot had ended."""

    pace: float = 1.0
    """Seconds that the last slot took."""
    before: float = 0.0
    """Of them, those in processes that were killed."""

    def __post_init__(self) -> None:
        self.folder = write_workflow(self.root / "day", runs=self.runs)
        self.home, self.tmp = self.root / "home", self.root / "tmp"
        self.tmp.mkdir()
        self.clock_file = self.root / "clock"
        self.clock_file.write_bytes(bytes(8))
        self.clock = FileClock(self.clock_file)
        self.clock.set(BEGIN)
        self.rng, self.faulty = random.Random(self.seed), Faulty(self.seed)
        self.ended = 0

    def run(self, hours: int, *, crash: bool = True, disk: int = -1, jump: int = -1) -> None:
        """`hours` slots; `disk` and `jump` name the hours in which those faults happen."""
        with FakeEndpoint(self.faulty) as fake:
            while self.ended < hours:
                with self._child(fake.base_url, hours - self.ended) as (child, lines):
                    self._watch(child, lines, hours, crash=crash, disk=disk, jump=jump)

    @contextmanager
    def _child(
        self, base_url: str, most: int
    ) -> Iterator[tuple[subprocess.Popen[str], queue.Queue[str | None]]]:
        environment = {
            **os.environ, "OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "sk-mine",
            "TMPDIR": str(self.tmp), "PYTHONPATH": os.pathsep.join(sys.path),
        }  # fmt: skip
        command = [sys.executable, str(CHILD), str(self.folder), str(self.home),
                   str(self.clock_file), str(most)]  # fmt: skip
        child = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
        )
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(child, lines), daemon=True)
        reader.start()
        try:
            yield child, lines
        finally:
            child.kill()
            child.wait()
            reader.join()
            assert child.stderr is not None
            child.stderr.close()

    def _watch(
        self, child: subprocess.Popen[str], lines: queue.Queue[str | None], hours: int, *,
        crash: bool, disk: int, jump: int,
    ) -> None:  # fmt: skip
        """Until the child is killed, or its last slot ended. It is killed once in each hour, at a
        random moment after the slot began; the pace of earlier slots says what is random."""
        began = time.monotonic()
        while (line := lines.get(timeout=300)) is not None:
            self.tries.append(line)
            if " begins (" in line or "going on with" in line:
                began = time.monotonic()
                if self.ended == jump and not self.jumps:
                    self.clock.set(self.clock.now() - HOUR)
                    self.jumps += 1
                if crash and self.kills <= self.ended:
                    self._wait(lines, self.rng.uniform(0.0, self.pace))
                    self.before += time.monotonic() - began
                    self._kill(child)
                    return
                if self.ended == disk and not self.disks:
                    self._fill_the_disk(child)
            elif "tried again" in line:
                self.refused += "log.db" in line
            elif ENDED.search(line):
                self.ended += 1
                self.pace, self.before = self.before + time.monotonic() - began, 0.0
                self.samples.append(held(child.pid, self.tmp))
        assert child.wait(30) == 0, self.tries[-10:]
        assert self.ended >= hours, self.tries[-10:]

    def _wait(self, lines: queue.Queue[str | None], seconds: float) -> None:
        """So long, or until the slot ends."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                line = lines.get(timeout=left)
            except queue.Empty:
                return
            self.tries.append(line or "")
            if line is None or ENDED.search(line):
                return

    def _kill(self, child: subprocess.Popen[str]) -> None:
        child.kill()
        child.wait()
        self.kills += 1
        with Archive(self.home) as archive:
            for kind in ("episode", "score", "call", "step", "slot_ended", "alias"):
                now = set(archive.log.keys(kind))
                assert self.seen.get(kind, set()) <= now, f"{kind} lost"
                self.seen[kind] = now
            self.ended = len(archive.log.keys("slot_ended"))

    def _fill_the_disk(self, child: subprocess.Popen[str], seconds: float = 3.0) -> None:
        """No file of the child may grow past where its write-ahead log is now."""
        size = max(path.stat().st_size for path in self.home.glob("log.db-wal"))
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (size + 20_000, resource.RLIM_INFINITY))
        free = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

        def let() -> None:
            if child.poll() is None:
                resource.prlimit(child.pid, resource.RLIMIT_FSIZE, free)

        threading.Timer(seconds, let).start()
        self.disks += 1

    def check(self, hours: int) -> dict[str, Any]:
        """What the log says of the day; asserts that nothing is lost and nothing happened twice."""
        with Archive(self.home) as archive:
            assert archive.verify()["ok"]
            ended = {e.key: e.body for e in archive.read(Query(kinds=("slot_ended",)))}
            begun = {e.key: e.body for e in archive.read(Query(kinds=("slot_begun",)))}
            for kind, keys in self.seen.items():
                assert keys <= set(archive.log.keys(kind)), f"{kind} lost"
            cycles = archive.log.keys("cycle")
            reports = [one for one in cycles if archive.step(one, "report") is not None]
            runs = Counter(
                str(entry.body["run"])  # type: ignore[index,call-overload]
                for entry in archive.read(Query(kinds=("episode",)))
            )
        names = [f"day/{_iso(BEGIN + HOUR * hour)}" for hour in range(hours)]
        states = Counter(str(one["state"]) for one in ended.values())  # type: ignore[index,call-overload]
        assert sorted(ended) == sorted(begun) == names, (self.tries[-5:], states)
        assert len(cycles) == len(set(cycles)) == hours == len(reports)
        assert set(states) <= {"kept", "promoted"}, states
        return {
            "slots": len(ended), "cycles": len(reports), "states": dict(states), "lost": 0,
            "double": 0, "kills": self.kills, "full disks": self.disks, "refused": self.refused,
            "clock jumps": self.jumps, "runs": sum(runs.values()),
            "least runs of a cycle": min(runs.values()), "calls": self.faulty.calls,
            "faults": sum(self.faulty.faults.values()),
        }  # fmt: skip


def held(pid: int, tmp: Path) -> dict[str, int]:
    """Resident KiB, descriptors, threads, children, temporary files and mounts of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    numbers = dict(re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.M))
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return {
        "rss": int(numbers["VmRSS"]),
        "threads": int(numbers["Threads"]),
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "children": len(children.read_text().split()) if children.exists() else 0,
        "temp": sum(1 for _ in tmp.rglob("*")),
        "mounts": len(Path(f"/proc/{pid}/mounts").read_text().splitlines()),
    }


def slope(values: list[int], runs: int) -> float:
    """Least squares: MiB per 1,000 runs, of KiB per slot of `runs` runs."""
    n = len(values)
    middle, mean = (n - 1) / 2, sum(values) / n
    rise = sum((at - middle) * (value - mean) for at, value in enumerate(values))
    return rise / sum((at - middle) ** 2 for at in range(n)) / 1024 * 1000 / runs


def _iso(moment: float) -> str:
    from agentloop.schedule import slot_name

    return slot_name(moment)


def _read(child: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert child.stderr is not None
    for line in child.stderr:
        lines.put(line.strip())
    lines.put(None)


def shown(figures: Mapping[str, Any]) -> str:
    """One line."""
    return json.dumps(figures)
