"""How long a run took over all processes that worked on it, for a budget of seconds that holds when
the run is resumed, and how many of them were killed.

In: the log and a run's id. Out: the seconds that were used before. Each process notes when it
begins and when it ends; of one that was killed, the last call or finished stage that the log has
counts as its end, so at most the work in flight is not counted. Time between processes is nobody's.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from agentloop.store.archive import Archive
from agentloop.store.query import Query

_BEGUN, _ENDED = "process_begun", "process_ended"


@contextmanager
def counted(archive: Archive, run: str) -> Iterator[float]:
    """Within, a process works on `run`; gives the seconds that others did before it. Raises
    `StoreError`."""
    before, processes = _spent(archive, run)
    key = f"{run}/{processes}"
    archive.add_event(_BEGUN, key, run, None)
    try:
        yield before
    finally:
        archive.add_event(_ENDED, key, run, None)


def seconds_of(archive: Archive, run: str) -> float:
    """The seconds that processes worked on `run`; between its first and its last note where none
    of them was `counted`."""
    return _spent(archive, run)[0]


def killed(archive: Archive, run: str) -> int:
    """How many processes ended without a note before another one took `run` up: what they had asked
    at that moment is in no count."""
    kinds = [one.kind for one in archive.read(Query(kinds=(_BEGUN, _ENDED), scope=run))]
    return sum(one == then == _BEGUN for one, then in pairwise(kinds))


def _spent(archive: Archive, run: str) -> tuple[float, int]:
    """Seconds, and how many processes there were."""
    of_run = archive.read(Query(scope=run))
    stages = archive.read(Query(kinds=("step",), prefix=f"{run}/"))
    seconds, processes = 0.0, 0
    last: float | None = None
    for entry in heapq.merge(of_run, stages, key=lambda one: one.seq):
        if entry.kind == _BEGUN:
            processes += 1
        elif last is not None:
            seconds += max(0.0, entry.at - last)
        last = entry.at
    return seconds, processes
