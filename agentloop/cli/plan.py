"""The plan of a cycle: which stages, how many rollouts at most; read off the workflow alone."""

from __future__ import annotations

from dataclasses import dataclass

from agentloop.workflows.schema import Workflow


@dataclass(frozen=True)
class Stage:
    """One line of the plan."""

    stage: str
    rollouts: int
    what: str


def cycle_plan(spec: Workflow) -> list[Stage]:
    """Upper bounds per stage, from the workflow's numbers and its parts' defaults."""
    from agentloop.refs import resolve

    def number(part: str, fields: dict[str, object], name: str) -> int:
        default = getattr(resolve(part), name, 0) if ":" in part and "./" not in part else 0
        value = fields.get(name, default)
        return value if isinstance(value, int) else 0

    collect = spec.collect
    stages = [
        Stage(
            "collect",
            number(collect.use, collect.fields, "rollouts"),
            "the champion practises on training tasks",
        )
    ]
    for name, lane in spec.lanes.items():
        stages.append(Stage(name, number(lane.use, lane.fields, "rollouts"), lane.use))
    lanes = len(spec.lanes)
    comparisons = (1 + lanes + (1 + lanes if lanes > 1 else 0)) * spec.heldout.lanes
    stages.append(
        Stage(
            "gate", comparisons + 2 * spec.heldout.n, "each lane alone, all together, each left out"
        )
    )
    return stages
