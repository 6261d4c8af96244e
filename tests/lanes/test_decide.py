"""The decision over lanes, in a world where the success of every union of lanes is known."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentloop.cycle import record
from agentloop.errors import PolicyError, ServerError, StoreError
from agentloop.gates.holdout import Holdout
from agentloop.gates.sequential import Sequential
from agentloop.lanes.decide import Decision, Judge
from agentloop.lanes.heldout import HoldOut
from agentloop.ports import Gate
from agentloop.records import Bundle, Episode, Proposal, Score, Task, Usage, artifact_id
from agentloop.store.archive import Archive

N = 32
CHOOSING, DECIDING = (
    tuple(Task(id=f"{side}{n:02}", prompt="?") for n in range(N)) for side in "cd"
)
PROPOSED = {
    "instructions": Bundle(instruction="new"),
    "skills": Bundle(instruction="old", skills=("skill",)),
    "policy": Bundle(instruction="old", policies={"agent": "policy"}),
}
CHAMPION = Bundle(instruction="old")
World = Mapping[str, tuple[int, int]]
"""Letters of the lanes (i, s, p; "" is the champion) -> tasks solved of 32, tokens per task."""
LETTERS = [*"isp"]
UNIONS = ["".join(some) for size in range(4) for some in combinations(LETTERS, size)]


def letters(bundle: Bundle) -> str:
    return (
        ("i" if bundle.instruction == "new" else "")
        + ("s" if bundle.skills else "")
        + ("p" if bundle.policies else "")
    )


class KnownWorld:
    """Stands for the bench: bundles by id, episodes by the table."""

    def __init__(self, world: World) -> None:
        self.world, self.archive = world, self
        self.refused: set[str] = set()
        self.seen: list[tuple[str, str]] = []
        self.bundles: dict[str, Bundle] = {}
        self.champion = self.put(CHAMPION)
        self.asked: list[str] = []

    def put(self, bundle: Bundle) -> str:
        self.bundles[artifact_id(bundle)] = bundle
        return artifact_id(bundle)

    def bundle(self, name: str) -> Bundle:
        return self.bundles[name]

    async def attempt(self, tasks: Sequence[Task], bundle: Bundle, order: Any) -> list[Episode]:
        assert order.purpose == "eval" and order.samples == 1
        self.asked.append(letters(bundle))
        self.seen += [(letters(bundle), task.id) for task in tasks]
        if letters(bundle) in self.refused:
            raise PolicyError("the adapter policy cannot be served: shapes (4, 3)")
        solved, tokens = self.world[letters(bundle)]
        return [
            Episode(
                id=f"{letters(bundle)}-{task.id}", task=task, bundle=artifact_id(bundle),
                purpose="eval", run="r", seed=0, usage=Usage(prompt_tokens=tokens),
                score=Score(value=float(hit), success=hit, source="s"),
            )
            for task in tasks
            for hit in [int(task.id[1:]) < solved]
        ]  # fmt: skip


def decide(
    world: World, lanes: Sequence[str] = tuple(PROPOSED), *, gate: Gate = Holdout(),
    refused: Sequence[str] = (), **more: Any,
) -> tuple[KnownWorld, Decision]:  # fmt: skip
    bench = KnownWorld(world)
    bench.refused = set(refused)
    proposals = [Proposal(lane=lane, state="proposed", bundle=PROPOSED[lane]) for lane in lanes]  # type: ignore[arg-type]
    judge = Judge(bench, gate, HoldOut(CHOOSING, DECIDING), **more)  # type: ignore[arg-type]
    return bench, asyncio.run(judge.decide(proposals))


def test_a_lane_whose_removal_does_not_hurt_is_dropped() -> None:
    world = {u: (28 if "i" in u else 16 if "s" in u else 8, 100) for u in UNIONS}
    bench, decision = decide(world, ["instructions", "skills"])
    assert decision.lanes == ("instructions",) and letters(bench.bundles[decision.bundle]) == "i"
    assert "88%" in decision.dropped["skills"]
    assert decision.final is not None and decision.final.passed and decision.final.n == N
    assert set(decision.alone) == {"instructions", "skills"} and decision.joint is not None
    assert decision.without["joint-without-skills"].effect == 0.0
    assert decision.without["joint-without-instructions"].effect < 0.0


def test_lanes_that_all_help_stay() -> None:
    world = {u: (6 + 8 * len(u), 100) for u in UNIONS}
    bench, decision = decide(world)
    assert set(decision.lanes) == set(PROPOSED) and not decision.dropped
    assert letters(bench.bundles[decision.bundle]) == "isp"
    assert decision.final is not None and decision.final.champion_rate == 6 / 32


@pytest.mark.parametrize(("tokens", "stays"), [(60, True), (80, True), (81, False), (100, False)])
def test_a_lane_stays_when_it_makes_the_bundle_a_fifth_cheaper(tokens: int, stays: bool) -> None:
    """The policy adds no success to the joint bundle; alone it passes."""
    world = {u: (28 if "i" in u else 20 if "p" in u else 8,
                 tokens if "p" in u else 100) for u in UNIONS}  # fmt: skip
    _, decision = decide(world, ["instructions", "policy"])
    assert decision.alone["policy"].passed
    assert ("policy" in decision.lanes) is stays


def test_where_none_passes_alone_the_union_of_all_is_judged() -> None:
    world = {u: (30 if u == "isp" else 10 if u else 8, 100) for u in UNIONS}
    _, decision = decide(world)
    assert not any(verdict.passed for verdict in decision.alone.values())
    assert set(decision.lanes) == set(PROPOSED)
    assert decision.final is not None and decision.final.passed


@pytest.mark.parametrize(("solved", "stopped"), [(0, "worse"), (16, "futile")])
def test_what_is_known_to_be_no_better_does_not_spend_the_deciding_tasks(
    solved: int, stopped: str
) -> None:
    bench, decision = decide(
        {"": (16, 100), "s": (solved, 100)}, ["skills"], gate=Sequential(power=0.5)
    )
    assert decision.alone["skills"].stopped == stopped
    assert (decision.bundle, decision.lanes, decision.final) == (bench.champion, (), None)
    deciding = {task.id for task in DECIDING}
    assert not any(task in deciding for _, task in bench.seen)
    # beside one of which nothing is known, it is left out of the union
    world = {u: (solved if "s" in u else 17 if u else 16, 100) for u in UNIONS}
    bench, decision = decide(world, ["instructions", "skills"], gate=Sequential(power=0.95))
    if stopped == "worse":
        assert decision.alone["instructions"].stopped == "limit"
        assert decision.lanes == ("instructions",) and decision.final is not None


def test_a_single_lane_is_judged_alone_and_on_the_whole_hold_out() -> None:
    bench, decision = decide({"": (8, 100), "s": (9, 100)}, ["skills"])
    assert decision.lanes == ("skills",) and decision.joint is None and not decision.without
    assert decision.final is not None and not decision.final.passed
    assert set(bench.asked) == {"", "s"}


def test_nothing_proposed_is_nothing_judged() -> None:
    bench, decision = decide({}, [])
    assert decision == Decision(bundle=bench.champion, lanes=(), final=None)
    judge = Judge(bench, Holdout(), HoldOut(CHOOSING, DECIDING))  # type: ignore[arg-type]
    skipped = Proposal(lane="policy", state="skipped", reason="no weights")
    assert asyncio.run(judge.decide([skipped])) == decision


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries(
        {union: st.tuples(st.integers(0, N), st.integers(20, 200)) for union in UNIONS}
    ),
    st.sets(st.sampled_from([*PROPOSED]), min_size=1),
)
def test_the_bundle_is_made_of_proposed_lanes_only(world: World, lanes: set[str]) -> None:
    bench, decision = decide(world, sorted(lanes))
    fit = {
        lane for lane, verdict in decision.alone.items()
        if verdict.stopped not in ("refused", "worse")
    }  # fmt: skip
    if not fit:  # ten times the tokens, say
        assert decision.final is None and decision.bundle == bench.champion
        return
    assert len(decision.lanes) > 0 and set(decision.lanes) <= lanes
    assert not set(decision.lanes) & set(decision.dropped)
    made = letters(bench.bundles[decision.bundle])
    assert sorted(made) == sorted(lane[0] for lane in decision.lanes)
    assert decision.final is not None and decision.final.challenger == decision.bundle
    passing = {lane for lane, verdict in decision.alone.items() if verdict.passed} or fit
    assert set(decision.lanes) | set(decision.dropped) == passing
    if decision.dropped and decision.joint is not None:  # dropping never cost success
        assert decision.final.challenger_rate >= decision.joint.challenger_rate


def test_the_deciding_tasks_are_seen_by_nothing_else() -> None:
    world = {u: (6 + 8 * len(u), 100) for u in UNIONS}
    bench, decision = decide(world)
    last = letters(bench.bundles[decision.bundle])
    deciding = {task.id for task in DECIDING}
    assert {who for who, task in bench.seen if task in deciding} == {"", last}
    assert decision.final is not None and decision.final.final and decision.final.use == 1
    assert {task for task, _, _ in decision.final.outcomes} == deciding
    assert not any(v.final or v.use for v in decision.verdicts if v is not decision.final)


@pytest.mark.parametrize("gate", [Holdout(), Sequential()])
def test_alpha_is_split_over_lanes_and_spent_over_uses(gate: Gate) -> None:
    world = {u: (6 + 8 * len(u), 100) for u in UNIONS}
    _, decision = decide(world, gate=gate)
    assert [v.alpha for v in decision.alone.values()] == pytest.approx([0.05 / 3] * 3)
    assert decision.final is not None
    assert decision.final.alpha == pytest.approx(0.05 * 6 / 3.14159265**2)


def test_a_lane_that_no_server_takes_is_refused_and_the_others_go_on() -> None:
    world = {u: (6 + 8 * len(u), 100) for u in UNIONS}
    unfit = [u for u in UNIONS if "p" in u]
    bench, decision = decide(world, refused=unfit)
    refused = decision.alone["policy"]
    assert not refused.passed and refused.stopped == "refused" and refused.n == 0
    assert refused.reason.startswith("refused: the adapter policy cannot be served")
    assert letters(bench.bundles[decision.bundle]) == "is"
    assert decision.final is not None and decision.final.passed
    bench, decision = decide(world, ["policy"], refused=unfit)
    assert (decision.bundle, decision.lanes, decision.final) == (bench.champion, (), None)
    assert set(decision.alone) == {"policy"}


def test_a_champion_that_no_server_takes_stops_the_cycle() -> None:
    with pytest.raises(ServerError) as told:
        decide(dict.fromkeys(UNIONS, (8, 100)), refused=[""])
    assert not isinstance(told.value, PolicyError)


def test_probes_are_shown_to_what_would_pass_and_may_refuse_it() -> None:
    world = {"": (8, 100), "s": (30, 100)}
    keep = [Task(id=f"p{n:02}", prompt="?") for n in (3, 12)]
    impossible = Task(id="p20", prompt="?", data={"expect": "fail"})
    _, decision = decide(world, ["skills"], probes=keep)
    assert decision.final is not None and decision.final.passed
    assert decision.final.guards["probes"] == {
        "impossible": 0, "fooled": [], "due": 1, "lost": [],
    }  # fmt: skip
    _, decision = decide(world, ["skills"], probes=[*keep, impossible])
    assert decision.final is not None and not decision.final.passed
    assert "impossible" in decision.final.reason and decision.final.stopped == "refused"
    bench, decision = decide({"": (8, 100), "s": (9, 100)}, ["skills"], probes=keep)
    assert not any(task.startswith("p") for _, task in bench.seen)  # it would not have passed


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive(tmp_path) as opened:
        yield opened


def recorded(archive: Archive, world: World) -> Decision:
    """Decide and record, as the cycle does."""
    for bundle in (CHAMPION, *PROPOSED.values()):
        archive.put(bundle)
    if archive.alias("w/champion") is None:
        archive.point("w/champion", artifact_id(CHAMPION), reason="first", scope="w")
    _, decision = decide(world, ["skills"])
    kit = SimpleNamespace(
        name="w", alias="w/champion", promoted="w/champion", cycle_id="cycle-1",
        bench=SimpleNamespace(archive=archive, champion=artifact_id(CHAMPION)),
    )  # fmt: skip
    fence = ("cycle/w", archive.log.lease("cycle/w", "test", 60.0))
    record(kit, decision, fence)  # type: ignore[arg-type]
    archive.log.release(*fence)
    return decision


def test_a_promotion_is_one_row_and_one_command_undoes_it(archive: Archive) -> None:
    world = {"": (8, 100), "s": (30, 100)}
    for _ in range(2):  # a resumed cycle records nothing twice
        decision = recorded(archive, world)
    assert [v.subject for v in archive.verdicts("cycle-1")] == ["skills", "joint"]
    history = archive.alias_history("w/champion")
    assert [pointer.bundle for pointer in history] == [artifact_id(CHAMPION), decision.bundle]
    assert history[-1].reason == "promoted by cycle-1"
    assert archive.rollback("w/champion") == artifact_id(CHAMPION)


def test_a_holder_that_lost_its_lease_promotes_nothing(archive: Archive) -> None:
    for bundle in (CHAMPION, *PROPOSED.values()):
        archive.put(bundle)
    archive.point("w/champion", artifact_id(CHAMPION), reason="first", scope="w")
    _, decision = decide({"": (8, 100), "s": (30, 100)}, ["skills"])
    bench = SimpleNamespace(archive=archive, champion=artifact_id(CHAMPION))
    kit = SimpleNamespace(
        name="w", alias="w/champion", promoted="w/champion", cycle_id="cycle-1", bench=bench
    )
    stale = ("cycle/w", archive.log.lease("cycle/w", "first", 60.0))
    archive.log.release(*stale)
    archive.log.lease("cycle/w", "second", 60.0)
    with pytest.raises(StoreError, match="lost"):
        record(kit, decision, stale)  # type: ignore[arg-type]
    assert [p.bundle for p in archive.alias_history("w/champion")] == [artifact_id(CHAMPION)]


def test_what_did_not_pass_does_not_serve(archive: Archive) -> None:
    decision = recorded(archive, {"": (8, 100), "s": (9, 100)})
    assert decision.final is not None and not decision.final.passed
    assert len(archive.verdicts("cycle-1")) == 2
    assert [p.bundle for p in archive.alias_history("w/champion")] == [artifact_id(CHAMPION)]
