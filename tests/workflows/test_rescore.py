"""Another grader over what is stored: in batches, appended, resumable, without a model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from agentloop.models.connect import connect
from agentloop.records import Episode, Failure, Message, Node, Score, Task, Trajectory
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.workflows import assemble, rescore
from agentloop.workflows.rescore import Grader


class Even:
    """Right where the answer is even; stops after `most` episodes, as a kill would."""

    def __init__(self, most: int | None = None) -> None:
        self.most, self.seen, self.groups = most, 0, list[int]()

    async def score(self, episodes: Sequence[Episode]) -> list[Score]:
        self.groups.append(len(episodes))
        self.seen += len(episodes)
        if self.most is not None and self.seen > self.most:
            raise KeyboardInterrupt
        return [
            Score(value=float(right), success=right, source="even")
            for right in (int(one.answer or 1) % 2 == 0 for one in episodes)
        ]


def rollout(number: int, samples: int) -> Episode:
    text = f"A reply of some length, which says that the number is {number}. " * 8
    nodes = (
        Node(parent=None, message=Message(role="user", content="Which?"), token_ids=(1,) * 60),
        Node(
            parent=0, message=Message(role="assistant", content=text), sampled=True,
            token_ids=tuple(range(90)), logprobs=(-0.25,) * 90,
        ),
    )  # fmt: skip
    failed = Failure(reason="model_error", detail="down") if number % 50 == 49 else None
    return Episode(
        id=f"ep-{number:016x}", task=Task(id=f"t{number // samples}", prompt="Which?"), bundle="b",
        purpose="collect", run="r", seed=number, sample=number % samples, answer=str(number),
        trajectories=(Trajectory(nodes=nodes),), failure=failed,
    )  # fmt: skip


def fill(archive: Archive, n: int, samples: int = 8) -> None:
    for start in range(0, n, 1000):
        made = [rollout(number, samples) for number in range(start, min(n, start + 1000))]
        asyncio.run(archive.add_episodes(made, scope="w"))
        first = [(one.id, Score(value=0.0, success=False, source="x")) for one in made]
        asyncio.run(archive.add_scores(first, "reward", scope="w"))


def grader(reward: Even, version: str = "1") -> Grader:
    return Grader(reward, "Even", version)


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[int], Archive]:
    def make(n: int) -> Archive:
        archive = Archive(tmp_path)
        fill(archive, n)
        return archive

    return make


def test_everything_is_graded_once_and_groups_stay_whole(
    stored: Callable[[int], Archive],
) -> None:
    with stored(1300) as archive:
        before = archive.log.read(Query(kinds=("score",)))
        count = sum(1 for _ in before)
        assert rescore.due(archive, "w", grader(Even())) == (1300, 1274)
        reward = Even()
        done = asyncio.run(rescore.rescore(archive, "w", grader(reward)))
        assert (done.read, done.scored, done.unscored) == (1300, 1274, 26)
        assert reward.seen == 1274 and len(reward.groups) == 3
        assert done.changed == sum(number % 2 == 0 for number in range(1300))
        right = {one.id for one in archive.episodes(Query(success=True))}
        assert right == {f"ep-{n:016x}" for n in range(1300) if n % 2 == 0}
        scores = list(archive.read(Query(kinds=("score",))))
        assert len(scores) == count + 1274, "the earlier scores stay"
        assert archive.verify()["ok"]


def test_a_pass_that_was_cut_off_goes_on(stored: Callable[[int], Archive]) -> None:
    with stored(1300) as archive:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(rescore.rescore(archive, "w", grader(Even(most=600))))
        assert rescore.due(archive, "w", grader(Even()))[0] < 900
        reward = Even()
        done = asyncio.run(rescore.rescore(archive, "w", grader(reward)))
        assert 0 < done.read < 900 and reward.seen == done.scored
        assert len(archive.episodes(Query(success=True))) == 650
        specs = {str(one.body["spec"]) for one in archive.read(Query(kinds=("score",)))}  # type: ignore[index, call-overload]
        assert len(specs) == 2, "one pass has one name"


def test_another_version_of_the_grader_begins_again(stored: Callable[[int], Archive]) -> None:
    with stored(600) as archive:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(rescore.rescore(archive, "w", grader(Even(most=520))))
        done = asyncio.run(rescore.rescore(archive, "w", grader(Even(), "2")))
        assert done.read == 600
        again = asyncio.run(rescore.rescore(archive, "w", grader(Even(), "2")))
        assert again.read == 600 and again.changed == 0 and again.spec != done.spec


@pytest.mark.slow
def test_10_000_without_a_model_call(
    stored: Callable[[int], Archive], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(assemble, "connect", lambda *given, **more: calls.append(given))
    assert assemble.connect is not connect
    with stored(10_000) as archive:
        started = time.perf_counter()
        done = asyncio.run(rescore.rescore(archive, "w", grader(Even())))
        seconds = time.perf_counter() - started
        print(f"{done.read} rescored in {seconds:.1f} s: {done.read / seconds:.0f} rows/s")
    assert (done.read, done.scored) == (10_000, 9_800) and calls == []
