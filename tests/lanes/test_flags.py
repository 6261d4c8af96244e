"""Flags of gamed graders: rates over those that could raise them, an alarm, a stop, and no rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agentloop.datasets.credit import GroupCredit
from agentloop.datasets.filters import Filters, Lent
from agentloop.datasets.makers import RLRows, SFTRows
from agentloop.datasets.recipe import Recipe
from agentloop.errors import TrainingError
from agentloop.lanes import flags
from agentloop.lanes.online import Online
from agentloop.lanes.phase import Phase, build
from agentloop.lanes.sample import Sample
from agentloop.records import Dataset, Episode, Node, Score, Task, Trajectory
from agentloop.records.exchange import Message, Sampling
from agentloop.rewards.split import CANARY, FRAMES

Opened = Callable[..., Any]
RECIPES = {
    "sft": Recipe(select=Filters(), rows=SFTRows()),
    "rl": Recipe(select=Filters(), credit=GroupCredit(), rows=RLRows()),
}


def scored(at: int, value: float = 1.0, **parts: float) -> Episode:
    told = {name.replace("_", ":"): one for name, one in parts.items()}
    said = Message(role="assistant", content=f"reply {at}")
    nodes = (
        Node(parent=None, message=Message(role="user", content="?"), token_ids=(1, 2)),
        Node(
            parent=0, message=said, token_ids=(at + 3, 4), sampled=True, logprobs=(-0.1, -0.2),
            sampling=Sampling(temperature=1.0),
        ),
    )  # fmt: skip
    return Episode(
        id=f"ep-{at}", task=Task(id=f"t-{at // 4}", prompt=f"task {at // 4}"), bundle="b",
        purpose="collect", run="r", seed=0, trajectories=(Trajectory(nodes=nodes),),
        score=Score(value=value, success=value > 0.5, source="s", parts=told),
    )  # fmt: skip


def test_a_rate_is_over_those_that_could_raise_the_flag() -> None:
    many = [scored(at, flag_frames=0.0) for at in range(100)]
    many += [scored(100 + at, flag_frames=0.0, flag_canary=float(at == 0)) for at in range(10)]
    unscored = replace(scored(200), score=None)
    assert flags.rates([*many, unscored, scored(201)]) == {CANARY: (1, 10), FRAMES: (0, 110)}
    assert flags.raised(many[100]) == (CANARY,) and flags.raised(unscored) == ()
    assert flags.unflagged(many) == many[:100] + many[101:]


@pytest.mark.parametrize(
    ("passed", "of", "told"),
    [(0, 200, ""), (1, 200, ""), (2, 200, "alarm"), (3, 200, "alarm"), (4, 200, "stop"),
     (1, 5, "stop")],
)  # fmt: skip
def test_an_alarm_at_one_percent_and_a_stop_at_two(passed: int, of: int, told: str) -> None:
    found = [scored(at, flag_canary=float(at < passed)) for at in range(of)]
    said = f"{passed} of the {of} that could raise `flag:canary` did"
    assert flags.alarm(found).startswith(said if told else "")
    assert bool(flags.alarm(found)) == bool(told)
    if told != "stop":
        return flags.refuse(found)
    with pytest.raises(TrainingError, match=f"too many rollouts gamed their grader: {said}"):
        flags.refuse(found)


@pytest.mark.parametrize("kind", RECIPES)
def test_of_a_batch_with_a_fifth_of_gamed_samples_none_reaches_the_rows(kind: str) -> None:
    """Even where a gamed sample was paid, and the rate of late is fine."""
    batch = [
        scored(at, float(at % 2), flag_canary=1.0) if at % 5 == 0 else scored(at, float(at % 2))
        for at in range(100)
    ]
    gamed = {one.id for one in batch if flags.raised(one)}
    assert len(gamed) == 20
    built = build(RECIPES[kind], batch, Lent(), lately=())
    assert len(built.rows) == 80 and not gamed & {row.episode for row in built.rows}
    assert gamed & {row.episode for row in RECIPES[kind].build(batch, Lent()).rows}  # teeth
    with pytest.raises(TrainingError, match="gamed their grader"):
        build(RECIPES[kind], batch, Lent())


def test_a_phase_stops_and_says_why(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as kit:
            bench = kit.bench
            said: list[str] = []
            bench.progress = lambda stage, done, total, note="": said.append(f"{stage} {note}")
            await Sample(tasks=24, samples=4).collect(bench)
            lane = Phase(rows="rl", credit="group", log="workflow")
            await mark(bench, lambda at: float(at < 3))
            with pytest.raises(TrainingError, match=r"3 of the 96 that could raise `flag:canary`"):
                await lane.propose(bench)
            assert not bench.archive.artifacts(Dataset)
            await mark(bench, lambda at: float(at < 1))
            proposal = await lane.propose(bench)
            assert proposal.state == "proposed", proposal.reason
            [alarm] = [one for one in said if one.startswith("alarm")]
            assert "1 of the 96 that could raise `flag:canary` did (1.0%)" in alarm
            [(_, dataset, _)] = bench.archive.artifacts(Dataset)
            first = next(iter(bench.archive.episodes())).id
            assert len(dataset.episodes) == dataset.rows and first not in dataset.episodes

    asyncio.run(main())


async def mark(bench: Any, flag: Callable[[int], float]) -> None:
    found = list(bench.archive.episodes())
    scores = [
        (one.id, replace(one.score, parts={CANARY: flag(at)}))
        for at, one in enumerate(found) if one.score is not None
    ]  # fmt: skip
    await bench.archive.add_scores(scores, f"screen {flag(0)} {flag(2)}")


def test_an_online_round_of_gamed_samples_is_not_learned_from(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as kit:
            kit.bench.reward = Gamed()
            with pytest.raises(TrainingError, match="too many rollouts gamed their grader"):
                await Online(rounds=1, tasks=4, samples=4).propose(kit.bench)
            assert not kit.bench.archive.artifacts(Dataset)

    asyncio.run(main())


class Gamed:
    async def score(self, episodes: list[Episode]) -> list[Score]:
        return [
            Score(value=float(at % 2), success=False, source="s", parts={FRAMES: float(at == 0)})
            for at, _ in enumerate(episodes)
        ]
