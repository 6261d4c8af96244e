"""What `--dry-run` prints: stages, how many rollouts at most, the price; read off the workflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from agentloop.cli import options as opt
from agentloop.cli import show

if TYPE_CHECKING:
    from agentloop.cli.session import Session
    from agentloop.records import Json
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
    from agentloop.workflows.assemble import probes

    spec = loaded.spec

    def rollouts(spec: PartSpec) -> int:
        part = loaded.build(spec)
        return part.rollouts if isinstance(part, RollsOut) else 0

    stages = [Stage("collect", rollouts(spec.collect), "the champion practises on training tasks")]
    for name, lane in spec.lanes.items():
        stages.append(Stage(name, rollouts(lane), lane.use.rpartition(":")[2]))
    # The champion, each lane alone and every union of them there can be.
    choosing = 2 ** len(spec.lanes) * spec.heldout.lanes
    deciding = 2 * (spec.heldout.n + len(probes(loaded)))
    what = "each lane alone, all together, each left out; then the one that remains"
    return [*stages, Stage("gate", choosing + deciding, what)]


def print_run_plan(session: Session, rollouts: int) -> int:
    """Counts and price of a run, without doing it."""
    from agentloop.workflows.assemble import price_of

    calls = rollouts * session.loaded.spec.limits.turns
    plan = {
        "workflow": session.loaded.name,
        "rollouts": rollouts,
        "calls_at_most": calls,
        "usd_at_most": price_of(session.loaded, session.model, calls),
    }
    if session.as_json:
        opt.print_json(plan)
    else:
        show.console().print(show.table("plan", ["what", "value"], list(plan.items())))
    return 0


def plan_of_cycle(session: Session) -> dict[str, Json]:
    """Stages, calls and price of a cycle, at most."""
    from agentloop.workflows.assemble import price_of

    stages = cycle_plan(session.loaded)
    calls = sum(one.rollouts for one in stages) * session.loaded.spec.limits.turns
    listed: list[Json] = [{"stage": one.stage, "rollouts_at_most": one.rollouts} for one in stages]
    usd = price_of(session.loaded, session.model, calls)
    return {"stages": listed, "calls_at_most": calls, "usd_at_most": usd}


def print_cycle_plan(session: Session) -> int:
    """The stages of a cycle with their counts and price."""
    plan = plan_of_cycle(session)
    if session.as_json:
        opt.print_json(plan)
        return 0
    stages, calls, usd = cycle_plan(session.loaded), plan["calls_at_most"], plan["usd_at_most"]
    rows = [(one.stage, one.rollouts, one.what) for one in stages]
    headings = ["stage", "rollouts at most", "what"]
    show.console().print(show.table("plan of one cycle", headings, rows))
    price = "unknown: add `prices`" if usd is None else f"${usd:.2f} at most"
    price = "free (local model)" if usd == 0 else price
    show.tell(f"at most {calls} model calls; price: {price}", style="bold")
    return 0
