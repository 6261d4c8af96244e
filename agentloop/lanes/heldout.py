"""The held-out tasks of one cycle: some that choose among lanes, others that decide.

Goes in: a source of tasks and the cycle's id. Comes out: a `HoldOut`. Two decisions worth knowing.
On which side a task is depends on a hash of its id and on `heldout` in the workflow, so while that
stays (and a source too small for both sides does) a task that helped to choose never decides; when
it does after a change, that counts as a use. And the draw is seeded by the cycle: generated tasks
are new each time, while of a finite source the log tells how often its tasks were used before.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from agentloop.errors import UsageError
from agentloop.ports import Tasks
from agentloop.records import Task
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.tasks.split import fraction

SPARE = 2
"""How many times the tasks wanted are drawn, so that both sides fill up."""


@dataclass(frozen=True)
class HoldOut:
    """Tasks that judge single lanes, and tasks that nothing sees but the final judgement."""

    lanes: tuple[Task, ...]
    final: tuple[Task, ...]
    use: int = 1
    """The how-manieth cycle this is that looks at some of the `final` ones."""

    @property
    def share(self) -> float:
        """The part of the gate's alpha that this use may spend: 6 / (pi^2 use^2), which over all
        uses there can be adds up to 1 (the Basel series)."""
        return 6 / (math.pi * self.use) ** 2


def drawn(tasks: Tasks, cycle: str, n: int) -> list[Task]:
    """All that a cycle may look at of the held-out tasks when its gate wants `n` in all."""
    return tasks.draw(SPARE * n, split="heldout", seed=zlib.crc32(f"{cycle}/heldout".encode()))


def split(tasks: Tasks, cycle: str, *, n: int, lanes: int) -> HoldOut:
    """At most `lanes` and `n` held-out tasks of the source; where it has fewer than both together,
    both get fewer. Raises `UsageError` when it has fewer than two."""
    found = drawn(tasks, cycle, n + lanes)
    if len(found) < 2:
        raise UsageError(
            f"there are {len(found)} held-out tasks, and one part of them chooses among lanes and "
            "another decides; add rows to the source of tasks"
        )
    place = {task.id: fraction("decides", task.id) for task in found}
    places = sorted(place.values())
    cut = min(max(lanes / (n + lanes), places[1]), places[-1])  # neither side is empty
    return HoldOut(
        lanes=_shuffled([task for task in found if place[task.id] < cut][:lanes], cycle),
        final=_shuffled([task for task in found if place[task.id] >= cut][:n], cycle),
    )


def _shuffled(tasks: Sequence[Task], cycle: str) -> tuple[Task, ...]:
    """In an order that has to do with nothing. Sources give families in turn, so that small ones
    come early; a gate that stops early would judge by those."""
    return tuple(sorted(tasks, key=lambda task: fraction(cycle, "order", task.id)))


def use_of(archive: Archive, workflow: str, cycle: str, ids: Collection[str]) -> int:
    """Which use of the tasks `ids` this cycle's final verdict is: one more than there are other
    cycles of the workflow of which a verdict, final or on a lane, used any of them. What this cycle
    already recorded stays."""
    wanted, others = set(ids), set[str]()
    for entry in archive.read(Query(kinds=("verdict",), scope=workflow)):
        body: Any = entry.body
        name = entry.key.partition("#")[0]
        if name != cycle:
            if any(row[0] in wanted for row in body.get("outcomes", ())):
                others.add(name)
        elif body.get("final"):
            return int(body["use"])
    return len(others) + 1
