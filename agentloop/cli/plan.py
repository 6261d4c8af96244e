"""The plan of a cycle: which stages, how many rollouts at most; read off the workflow alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from agentloop.workflows.load import Loaded
from agentloop.workflows.schema import PartSpec


@dataclass(frozen=True)
class Stage:
    """One line of the plan."""

    stage: str
    rollouts: int
    what: str


@runtime_checkable
class RollsOut(Protocol):
    """A part that runs the agent says in a field or property how often at most."""

    rollouts: int


def cycle_plan(loaded: Loaded) -> list[Stage]:
    """Upper bounds per stage, from the workflow's numbers and its parts' defaults."""
    spec = loaded.spec

    def rollouts(spec: PartSpec) -> int:
        part = loaded.build(spec)
        return part.rollouts if isinstance(part, RollsOut) else 0

    stages = [Stage("collect", rollouts(spec.collect), "the champion practises on training tasks")]
    for name, lane in spec.lanes.items():
        stages.append(Stage(name, rollouts(lane), lane.use.rpartition(":")[2]))
    lanes = len(spec.lanes)
    comparisons = (1 + lanes + (1 + lanes if lanes > 1 else 0)) * spec.heldout.lanes
    what = "each lane alone, all together, each left out"
    return [*stages, Stage("gate", comparisons + 2 * spec.heldout.n, what)]
