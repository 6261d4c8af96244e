"""A bench that knows its gate: which tasks no lane may learn from, and what counts as a rollout.

Goes in: what a `Bench` is given, and how many held-out tasks the gate draws. Comes out: the same
bench, whose budget is of rollouts alone; and `held_out`, all that the gate can draw. The decision
worth knowing: of tasks that are made without end only the cycle's own draw can be known, so that
one is guarded whole; of a file every held-out task is, whatever the seed of a later cycle.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from agentloop.errors import BudgetReached
from agentloop.lanes.bench import Bench
from agentloop.lanes.heldout import SPARE, drawn
from agentloop.records import Episode, Json, Task
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.tasks.files import Jsonl

HELD_OUT = 256
"""At least so many held-out tasks are kept out of what is learned from."""
_CUT = "cut/"
"""Steps of a run that name the episodes which were cut out of others."""


@dataclass
class GatedBench(Bench):
    """The bench of a workflow."""

    gate_n: int = 0
    """Held-out tasks that its gate wants, those for single lanes included."""

    def afford(self, rollouts: int) -> None:
        """As a `Bench`, but an episode that was cut out of another was never rolled out."""
        if self.max_rollouts is None:
            return
        made = rollouts_of(self.archive, self.run)
        if made + rollouts > self.max_rollouts:
            raise BudgetReached(
                f"{made} of {self.max_rollouts} rollouts are used and {rollouts} more are needed; "
                "raise `budget.rollouts` and continue"
            )


def rollouts_of(archive: Archive, run: str) -> int:
    """How many rollouts a run has made; an episode that was cut out of another was none."""
    logged = archive.log.chosen(Query(kinds=("episode",), run=run))
    named = archive.read(Query(kinds=("step",), prefix=f"{run}/{_CUT}"))
    cut = {name for one in named if isinstance(one.body, list) for name in one.body}
    return len(logged - cut)


def note_cut(bench: Bench, name: str, episodes: Sequence[Episode]) -> None:
    """Note that these are parts of other episodes, before they are logged: nothing was rolled out
    for them. `name` tells one note of a run from another."""
    names: list[Json] = [one.id for one in episodes]
    bench.archive.add_step(bench.run, f"{_CUT}{name}", names)


def held_out(bench: Bench) -> list[Task]:
    """The held-out tasks that nothing may be learned from: all that the gate can draw."""
    if isinstance(bench.tasks, Jsonl):
        return bench.tasks.draw(sys.maxsize, split="heldout", seed=bench.seed)
    gate = bench.gate_n if isinstance(bench, GatedBench) else 0
    return drawn(bench.tasks, bench.run, max(HELD_OUT // SPARE, gate))
