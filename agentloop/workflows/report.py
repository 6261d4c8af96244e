"""The report of a cycle: the JSON object that `agentloop cycle --json` ends with.

Goes in: proposals and the decision. Comes out: a `Report`; its fields are the contract that
scripts rely on, so they change only with the schema version.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from agentloop.lanes.decide import Decision
from agentloop.models.meter import Meter
from agentloop.records import Proposal, Verdict
from agentloop.records.base import record
from agentloop.store.archive import Archive
from agentloop.workflows.seconds import killed

LANES = ("instructions", "skills", "policy")
WORN = 3
"""Uses from which on a person is told that the hold-out wears out: alpha is then a fifteenth."""
LaneState = Literal["promoted", "kept", "failed", "skipped"]


@record
class HeldOutReport:
    """The final comparison; rates are `None` when there was nothing to compare."""

    n: int = 0
    champion: float | None = None
    challenger: float | None = None
    effect: float | None = None
    ci95: tuple[float, float] | None = None
    p: float | None = None
    planned: int = 0
    """Tasks that it would have taken without stopping early."""
    stopped: str = ""
    """As in a `Verdict`."""
    alpha: float | None = None
    """The level it was tested at."""
    use: int = 0
    """The how-manieth cycle this is that was decided on some of these tasks."""
    reason: str = ""
    note: str = ""
    """What the person should do about the hold-out; empty when nothing."""


@record
class LaneReport:
    """One lane, judged alone."""

    state: LaneState
    candidate: str | None = None
    effect: float | None = None
    ci95: tuple[float, float] | None = None
    p: float | None = None
    tokens_ratio: float | None = None
    seconds: float = 0.0
    reason: str = ""


@record
class Unconfirmed:
    """What may be on the bill beside what is known."""

    calls: int = 0
    """Attempts that ended without an answer: cut off, or the connection was lost."""
    tokens: int = 0
    """Of their prompts, by an estimate."""
    usd: float = 0.0
    """For these tokens."""
    killed: int = 0
    """Processes that were killed at this run: what they had asked just then is in no count."""


@record
class Cost:
    """What a run or cycle used in all, over all processes that worked on it."""

    usd: float
    tokens: int
    seconds: float
    unpriced: int = 0
    """Calls without a known price: with any, `usd` is a lower bound."""
    unconfirmed: Unconfirmed = Unconfirmed()


@record
class Report:
    """The whole contract."""

    cycle: str
    state: Literal["promoted", "kept", "failed"]
    heldout: HeldOutReport
    lanes: dict[str, LaneReport]
    cost: Cost
    bundle: str
    """Id of the bundle that serves after the cycle."""


def make_report(
    cycle_id: str, proposals: Sequence[Proposal], decision: Decision, *, cost: Cost, champion: str
) -> Report:
    """The report of one finished cycle."""
    final = decision.final
    promoted = final is not None and final.passed
    absent = LaneReport(state="skipped", reason="not in the workflow")
    lanes: dict[str, LaneReport] = dict.fromkeys(LANES, absent)
    lanes |= {p.lane: _lane(p, decision, promoted) for p in proposals}
    failed = bool(proposals) and all(p.state == "failed" for p in proposals)
    return Report(
        cycle=cycle_id,
        state="promoted" if promoted else "failed" if failed else "kept",
        heldout=_heldout(final),
        lanes=lanes,
        cost=cost,
        bundle=decision.bundle if promoted else champion,
    )


def _heldout(final: Verdict | None) -> HeldOutReport:
    if final is None:
        return HeldOutReport()
    return HeldOutReport(
        n=final.n, champion=final.champion_rate, challenger=final.challenger_rate,
        effect=final.effect, ci95=final.ci95, p=final.p, planned=final.planned,
        stopped=final.stopped, alpha=final.alpha, use=final.use, reason=final.reason,
        note=_worn(final),
    )  # fmt: skip


def _worn(final: Verdict) -> str:
    if final.use < WORN:
        return ""
    return (
        f"{final.use} cycles were decided on some of these held-out tasks, so that the level is "
        f"down to {final.alpha:.2g} and only large gains are found; add held-out tasks"
    )


def _lane(proposal: Proposal, decision: Decision, promoted: bool) -> LaneReport:
    verdict = decision.alone.get(proposal.lane)
    if verdict is None:
        state: LaneState = "failed" if proposal.state == "failed" else "skipped"
        return LaneReport(
            state=state,
            candidate=proposal.candidate,
            reason=proposal.reason,
            seconds=proposal.seconds,
        )
    serving = promoted and proposal.lane in decision.lanes
    reason = verdict.reason
    if proposal.lane in decision.dropped:
        reason = f"left out of the joint bundle: {decision.dropped[proposal.lane]}"
    return LaneReport(
        state="promoted" if serving else "kept", candidate=proposal.candidate,
        effect=verdict.effect, ci95=verdict.ci95, p=verdict.p, tokens_ratio=verdict.tokens_ratio,
        seconds=proposal.seconds, reason=reason,
    )  # fmt: skip


def cost_of(meter: Meter, archive: Archive, run: str, seconds: float) -> Cost:
    """What `run` has cost so far by its ledger; `seconds` are the caller's."""
    total, guessed = meter.total, meter.unconfirmed
    return Cost(
        usd=total.usd, tokens=total.tokens, seconds=seconds, unpriced=total.unpriced,
        unconfirmed=Unconfirmed(
            calls=guessed.calls, tokens=guessed.tokens, usd=guessed.usd,
            killed=killed(archive, run),
        ),
    )  # fmt: skip
