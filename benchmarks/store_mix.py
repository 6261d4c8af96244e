"""Four processes that append and two that search one home: how soon is a row found, and any errors.

In: a home. Out: rows, errors, seconds from the acknowledgement of a row to its being found by a
search for its text. Every row is looked for, by one of the readers, which live all along.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentloop.records import Episode, Task
from agentloop.store.archive import Archive

WRITERS, READERS = 4, 2
PACE = 0.05
"""Seconds between the appends of one writer."""
GIVE_UP = 20.0
STARTED = 60.0
"""Seconds that all may take to open the home; one that fails to ends the others."""


def _text(name: str) -> str:
    words = random.Random(name)
    return " ".join("".join(words.choices("abcdefghilmnorstu", k=5)) for _ in range(8))


def _write(home: Path, number: int, seconds: float, sent: Any, begin: Any) -> None:
    errors, count, mark = [], 0, f"{os.getpid()}-{time.time_ns()}"
    with Archive(home) as archive:
        begin.wait(STARTED)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            name = f"mix-{mark}-{number}-{count}"
            episode = Episode(
                id=name, task=Task(id=name, prompt=_text(name)), bundle="bundle-1", run="mix",
                purpose="train", seed=0,
            )  # fmt: skip
            try:
                asyncio.run(archive.add_episodes([episode], scope="bench"))
            except Exception as error:  # counted and told
                errors.append(repr(error))
            sent.put((name, time.monotonic()))
            count += 1
            time.sleep(PACE)
    sent.put((None, errors))


def _search(home: Path, sent: Any, found: Any, begin: Any) -> None:
    errors: list[str] = []
    times, missing, writing = [], 0, WRITERS // READERS
    with Archive(home) as archive:
        archive.search("episode", "anything", 3)
        begin.wait(STARTED)
        while writing:
            name, at = sent.get(timeout=GIVE_UP)
            if name is None:
                errors += at
                writing -= 1
            elif _found(archive, name, at + GIVE_UP, errors):
                times.append(time.monotonic() - at)
            else:
                missing += 1
    found.put((times, errors, missing))


def _found(archive: Archive, name: str, until: float, errors: list[str]) -> bool:
    while True:
        try:
            if name in dict(archive.search("episode", _text(name), 3)):
                return True
        except Exception as error:  # counted and told
            errors.append(repr(error))
        if time.monotonic() > until:
            return False


def mix(home: Path, seconds: float) -> dict[str, Any]:
    """Run it once."""
    home.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    begin, found = spawn.Barrier(WRITERS + READERS), spawn.Queue()
    queues = [spawn.Queue() for _ in range(READERS)]
    workers = [
        spawn.Process(
            target=_write, args=(home, n, seconds, queues[n % READERS], begin), daemon=True
        )
        for n in range(WRITERS)
    ]
    workers += [
        spawn.Process(target=_search, args=(home, q, found, begin), daemon=True) for q in queues
    ]
    for worker in workers:
        worker.start()
    results = [found.get(timeout=seconds + 300) for _ in range(READERS)]
    for worker in workers:
        worker.join()
    return _summary(
        [one[0] for one in results], [one[1] for one in results], sum(one[2] for one in results)
    )


def _summary(
    times: Sequence[Sequence[float]], errors: Sequence[Sequence[str]], missing: int
) -> dict[str, Any]:
    every = sorted(time for one in times for time in one)
    told = [error for one in errors for error in one]
    return {
        "rows": len(every) + missing, "never_found": missing, "errors": len(told),
        "first_errors": told[:3], "found_median_s": round(every[len(every) // 2], 4),
        "found_last_s": round(every[-1], 4),
    }  # fmt: skip
