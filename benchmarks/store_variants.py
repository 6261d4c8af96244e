"""One variant of the store's measurement per process: `python -m benchmarks.store_variants NAME N`.

In: a variant and a number of rows. Out: one JSON object, the last line. The log and the bare table
commit the same rows with `synchronous=FULL` in groups of the same size, then singly.
"""

from __future__ import annotations

import json
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agentloop.records import Episode, Json, Message, Node, Task, Trajectory
from agentloop.store.archive import Archive
from agentloop.store.log import Log
from agentloop.store.query import Draft, Query
from agentloop.trajectories.codec import to_json
from benchmarks.harness import spent

GROUP = 100
SINGLE = 300
SAMPLES = 8
"""Trajectories per task."""
SECRETS = {f"SERVICE_{n}_API_KEY": f"not-a-real-key-{n}-{'x' * 24}" for n in range(5)}
"""As a user's environment has them; every row is looked through for them."""


def calls(count: int) -> Iterator[Draft]:
    """Replies to model calls, about 2.6 kB each with 400 token ids."""
    rng = random.Random(0)
    ids: list[list[Json]] = [[rng.randrange(50_000) for _ in range(400)] for _ in range(50)]
    for number in range(count):
        body: Json = {"id": number, "text": "the answer is " * 20, "token_ids": ids[number % 50]}
        yield Draft(kind="call", key=f"ep-{number:08x}/0", body=body)


def prompt(number: int) -> str:
    """The text of a task, unlike all others."""
    words = random.Random(number)
    noun = ("river", "letter", "prime", "graph", "clock", "apple", "train", "chess", "matrix")
    told = " ".join(words.choice(noun) for _ in range(8))
    return f"Task {number}: {told}, {words.randrange(10**6)} times over?"


def trajectories(count: int) -> Iterator[Draft]:
    """Episodes of three turns, about 3 kB each, `SAMPLES` of each task."""
    rng = random.Random(0)
    said = [
        Message(role="assistant", content=text) for text in ("I will call it. " * 4, "It is 42.")
    ]
    nodes = (
        Node(parent=None, message=Message(role="user", content="")),
        Node(parent=0, message=said[0], sampled=True,
             token_ids=tuple(rng.randrange(50_000) for _ in range(120)),
             logprobs=tuple(-rng.random() for _ in range(60))),
        Node(parent=1, message=Message(role="tool", content="42 " * 20)),
        Node(parent=2, message=said[1], sampled=True, token_ids=tuple(range(60))),
    )  # fmt: skip
    model: dict[str, Any] = to_json(Episode(
        id="", task=Task(id="", prompt="", expected=42), bundle="bundle-1", purpose="train",
        run="", seed=0, trajectories=(Trajectory(nodes=nodes),), answer="42",
    ))  # fmt: skip
    for number in range(count):
        task = number // SAMPLES
        body = model | {
            "id": f"ep-{number:08x}", "run": f"run-{number // 20_000}", "sample": number % SAMPLES,
            "purpose": "eval" if task % 4 == 0 else "train",
            "task": {"id": f"task-{task}", "prompt": prompt(task), "expected": 42},
            "score": {"value": 1.0, "success": number % 3 == 0, "source": "bench"},
        }  # fmt: skip
        yield Draft(kind="episode", key=body["id"], body=body, scope="bench")


def _drafts(kind: str, count: int) -> list[Draft]:
    return list((trajectories if kind == "episodes" else calls)(count))


def _measured(append: Callable[[list[Draft]], object], drafts: list[Draft]) -> dict[str, float]:
    """Rows per second in groups, then the median of single appends."""
    singles, drafts = drafts[:SINGLE], drafts[SINGLE:]
    append(drafts[:GROUP])  # the file has its first pages
    drafts = drafts[GROUP:]
    with spent() as took:
        for start in range(0, len(drafts), GROUP):
            append(drafts[start : start + GROUP])
    times = []
    for draft in singles:
        began = time.perf_counter()
        append([draft])
        times.append(time.perf_counter() - began)
    return {
        "rows_per_second": len(drafts) / took.wall,
        "cpu_us_per_row": 1e6 * took.cpu / len(drafts),
        "single_ms": 1e3 * statistics.median(times),
    }


def log(kind: str, count: int, folder: Path) -> dict[str, float]:
    """Ours: hash chain, redaction, idempotence, facts of episodes."""
    from agentloop.trajectories.redact import Redactor

    ours = Log(folder / "log.db", redact=Redactor(SECRETS))
    found = _measured(ours.append, _drafts(kind, count))
    ours.close()
    return found


def bare(kind: str, count: int, folder: Path) -> dict[str, float]:
    """The physical bound: the same rows as JSON text into one table without an index."""
    db = sqlite3.connect(folder / "bare.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE entry (seq INTEGER PRIMARY KEY, body BLOB)")

    def append(drafts: list[Draft]) -> None:
        db.execute("BEGIN IMMEDIATE")
        texts = [(json.dumps(one.body, separators=(",", ":")).encode(),) for one in drafts]
        db.executemany("INSERT INTO entry (body) VALUES (?)", texts)
        db.execute("COMMIT")

    found = _measured(append, _drafts(kind, count))
    db.close()
    return found


def fill(count: int, home: Path) -> dict[str, float]:
    """A home of `count` trajectories and its index: seconds of each."""
    home.mkdir(parents=True, exist_ok=True)
    with Archive(home) as archive:
        began = time.perf_counter()
        group: list[Draft] = []
        for draft in trajectories(count):
            group.append(draft)
            if len(group) == 1000:
                archive.log.append(group)
                group = []
        archive.log.append(group)
        logged = time.perf_counter()
        archive.reindex()
        return {"append_s": logged - began, "index_s": time.perf_counter() - logged}


def read(count: int, home: Path) -> dict[str, float]:
    """Milliseconds to read one task's group whole and to search, medians of 50."""
    dice = random.Random(1)
    tasks = [dice.randrange(count // SAMPLES) for _ in range(50)]
    with Archive(home) as archive:
        began = time.perf_counter()
        archive.search("episode", "anything", 10)
        opened = time.perf_counter() - began

        def group(task: int) -> int:
            run = f"run-{task * SAMPLES // 20_000}"
            return len(archive.episodes(Query(task=f"task-{task}", run=run)))

        def timed(work: Callable[[int], int], want: int) -> float:
            times = []
            for task in tasks:
                began = time.perf_counter()
                assert work(task) == want
                times.append(1e3 * (time.perf_counter() - began))
            return statistics.median(times)

        def search(task: int, **given: Any) -> int:
            # Half are texts that are there, half are new.
            text = prompt(task if task % 2 else task + 10**6)
            return len(archive.search("episode", text, 10, **given))

        return {
            "open_s": opened,
            "group_ms": timed(group, SAMPLES),
            "search_ms": timed(search, 10),
            "search_solved_ms": timed(lambda task: search(task, success=True), 10),
            "search_solved_eval_ms": timed(
                lambda task: search(task, success=True, purpose="eval", scope="bench"), 10
            ),
        }


def main() -> None:
    """Run one variant and print what it measured."""
    name, count = sys.argv[1], int(sys.argv[2])
    if name in ("fill", "read"):
        found = (fill if name == "fill" else read)(count, Path(sys.argv[3]))
    else:
        who, _, kind = name.partition("-")
        with tempfile.TemporaryDirectory() as folder:
            found = (log if who == "log" else bare)(kind, count, Path(folder))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
