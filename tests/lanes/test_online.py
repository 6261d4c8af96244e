"""Online rounds: each samples with the version that the one before left; a run that is killed goes
on where it was; guards look from round to round."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_workflow
from pydantic import ValidationError

from agentloop.datasets.credit import Credit
from agentloop.datasets.manifest import load_rows, rows_path
from agentloop.errors import TrainingError
from agentloop.lanes.bench import Bench
from agentloop.lanes.online import Online, Round, rounds_of, watch, with_policy
from agentloop.models.scripted import Scripted
from agentloop.ports import part
from agentloop.records import (
    Bundle,
    Dataset,
    Json,
    Policy,
    Request,
    Row,
    Score,
    TrainingJob,
    TrainingResult,
)  # fmt: skip
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.training.artifact import CONFIG, WEIGHTS, finished, publish
from agentloop.training.guards import Guards, GuardSettings
from agentloop.trajectories.rows_file import NAME, lines_of, write_rows
from agentloop.workflows.assemble import Options, assemble
from agentloop.workflows.load import load
from agentloop.workspace import Workspace

PARTS = tiny_workflow.PARTS.replace("int(a) % 2", "(request.sampling.seed or 0) % 2").replace(
    "or request.policy", ""
)
"""Right by the seed of the sample, trained or not, so that every round has groups to compare."""
ROUNDS = Online(rounds=3, tasks=4, samples=4)


class Counting:
    """A trainer whose adapters differ by job, and which leaves an optimizer's state beside each;
    `dies_at` is the number of the job that it does not survive, `kl` what it measures by job."""

    def __init__(self, dies_at: int = 0, kl: Sequence[float] = ()) -> None:
        self.jobs: list[TrainingJob] = []
        self.dies_at, self.kl = dies_at, kl

    async def train(self, job: TrainingJob) -> TrainingResult:
        if (done := finished(job)) is not None:
            return done
        self.jobs.append(job)
        if len(self.jobs) == self.dies_at:
            raise KeyboardInterrupt

        def write(directory: Path) -> None:
            data = Path(job.dataset).read_bytes() + (job.adapter or "").encode()
            (directory / CONFIG).write_text("{}")
            (directory / WEIGHTS).write_text(hashlib.sha256(data).hexdigest())

        Path(f"{job.out}.optimizer").mkdir(parents=True, exist_ok=True)
        metrics = {"ratio_at_start": 1.0}
        if self.kl:
            metrics["last_kl"] = self.kl[len(self.jobs) - 1]
        return publish(job, write, metrics=metrics, seconds=0.0)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Any]:
    """Opens a bench on a home that outlives it."""
    folder = tiny_workflow.make(tmp_path, parts=PARTS)
    (tmp_path / "home").mkdir()

    @asynccontextmanager
    async def open_bench() -> AsyncIterator[Bench]:
        space = Workspace((tmp_path, *Workspace.find().roots))
        with Archive(tmp_path / "home") as archive:
            options = Options(run="run-1", seed=0, workspace=space, home=tmp_path / "home")
            async with assemble(load(str(folder), space), archive, options) as kit:
                yield kit.bench

    return open_bench


def rows_of(bench: Bench, made: Round) -> list[Row]:
    dataset = bench.archive.get(made.dataset, Dataset)
    return load_rows(rows_path(bench.home / "datasets", dataset))


def test_each_round_samples_with_what_the_one_before_left(opened: Callable[..., Any]) -> None:
    async def main() -> None:
        async with opened() as bench:
            bench.trainer = trainer = Counting()
            proposal = await ROUNDS.propose(bench)
            assert proposal.state == "proposed", proposal.reason
            rounds = rounds_of(bench.archive, "run-1")
            assert [one.number for one in rounds] == [1, 2, 3]
            versions = [None, *(one.policy for one in rounds)]
            assert len(set(versions)) == 4 and [one.sampled_by for one in rounds] == versions[:3]
            assert proposal.candidate == versions[3]
            assert proposal.bundle == with_policy(bench.bundle(bench.champion), versions[3])
            for at, (one, job) in enumerate(zip(rounds, trainer.jobs, strict=True)):
                found = rows_of(bench, one)
                assert found and {row.policy for row in found} == {one.sampled_by}
                assert all(any(row.advantages) and not row.prompt for row in found)
                assert one.figures["rollouts"] == 16 and one.figures["ratio_at_start"] == 1
                before = rounds[at - 1].optimizer if at else None
                assert job.settings.get("optimizer") == before
                assert bool(job.adapter) == (at > 0)
            for number, version in enumerate(versions[1:]):
                parents = bench.archive.get(str(version), Policy).parents
                assert parents == ((versions[number],) if number else ())
            episodes = bench.archive.episodes(Query(purpose="train"))
            assert len({one.task.id for one in episodes}) > 4  # each round draws its own tasks

    asyncio.run(main())


@pytest.mark.parametrize("dies_at", [1, 2])
def test_a_killed_run_goes_on_where_it_was(opened: Callable[..., Any], dies_at: int) -> None:
    async def main(trainer: Counting) -> tuple[Any, int, list[Round]]:
        async with opened() as bench:
            asked = Scripted(reply)
            bench.trainer, bench.model = trainer, asked
            try:
                proposal = await ROUNDS.propose(bench)
            except KeyboardInterrupt:
                proposal = None
            rounds = rounds_of(bench.archive, "run-1")
            for one in rounds:  # later signals do not move what is finished
                used = bench.archive.get(one.dataset, Dataset).episodes
                late = Score(value=0.5, success=False, source="late")
                await bench.archive.add_scores([(name, late) for name in used], "late")
            return proposal, asked.calls, rounds

    nothing, calls, before = asyncio.run(main(Counting(dies_at)))
    assert nothing is None and len(before) == dies_at - 1
    second = Counting()
    proposal, more, rounds = asyncio.run(main(second))
    assert proposal.state == "proposed" and len(rounds) == 3
    assert rounds[: len(before)] == before
    assert len(second.jobs) == 3 - (dies_at - 1)  # a finished round is not learned again
    assert calls > 0 and more > 0
    third, none, _ = asyncio.run(main(Counting()))
    assert none == 0 and third == proposal
    assert calls + more == 3 * 16 * 2 - sum(one_call(one) for one in rounds)


def test_rounds_without_anything_to_compare_are_skipped(opened: Callable[..., Any]) -> None:
    async def main() -> None:
        async with opened() as bench:
            bench.model, bench.trainer = Scripted(lambda _: "Answer: 42"), Counting()
            proposal = await ROUNDS.propose(bench)
            assert proposal.state == "skipped" and not bench.trainer.jobs
            assert "nothing was learned in 3 rounds: 0 rows of 16 episodes" in proposal.reason
            assert "16 group of one reward" in proposal.reason

    asyncio.run(main())


@pytest.mark.parametrize("guards", [{"max_growth": 1.5, "patience": 1}, {"max_growth": 1.5}])
def test_answers_that_grow_from_round_to_round_stop_it(
    opened: Callable[..., Any], guards: dict[str, Json]
) -> None:
    """The adapters of the rounds before make the model wordier."""
    lane = Online(rounds=8, tasks=2, samples=4, settings={"guards": guards})

    async def main() -> None:
        async with opened() as bench:
            known: list[str | None] = []

            def wordier(request: Request) -> str:
                if request.policy not in known:
                    known.append(request.policy)
                return "well " * 2 ** known.index(request.policy) + "\n" + reply(request)

            bench.model, bench.trainer = Scripted(wordier), Counting()
            with pytest.raises(TrainingError, match="answers grew too long"):
                await lane.propose(bench)
            made = rounds_of(bench.archive, "run-1")
            assert 0 < len(made) < 7  # and what they made is kept
            assert len(bench.archive.artifacts(Dataset)) == len(made)
            with pytest.raises(TrainingError, match="answers grew too long"):
                await lane.propose(bench)  # not forgotten by a second run
            assert len(bench.archive.artifacts(Dataset)) == len(made)

    asyncio.run(main())


def test_a_divergence_that_blows_up_between_rounds_stops_it(opened: Callable[..., Any]) -> None:
    lane = Online(rounds=6, tasks=4, samples=4, settings={"guards": {"max_kl": 0.5, "patience": 2}})

    async def main() -> None:
        async with opened() as bench:
            bench.trainer = trainer = Counting(kl=[0.1, 7.0, 0.2, 7.0, 9.0, 0.1])
            for _ in range(2):  # nor is it forgotten by a second run
                with pytest.raises(TrainingError, match=r"left its reference at step 5: 9.*0\.5"):
                    await lane.propose(bench)
            assert len(trainer.jobs) == 5 and len(rounds_of(bench.archive, "run-1")) == 4

    asyncio.run(main())


@part
class Stricter(Online):
    """Looks closer from the second round on."""

    def plan(self, number: int) -> tuple[Credit, dict[str, Json]]:
        return self.credit, {"guards": {"max_kl": 5.0 if number == 1 else 0.5, "patience": 1}}


def test_guards_between_rounds_are_those_of_the_round_s_plan(opened: Callable[..., Any]) -> None:
    async def main() -> None:
        async with opened() as bench:
            bench.trainer = Counting(kl=[3.0, 3.0, 3.0])
            with pytest.raises(TrainingError, match=r"at step 2: 3, and the limit is 0\.5"):
                await Stricter(rounds=3, tasks=4, samples=4).propose(bench)

    asyncio.run(main())


def test_the_versions_of_a_phase_are_known_to_its_own_selection(opened: Callable[..., Any]) -> None:
    lane = Online(
        rounds=3, tasks=4, samples=4, select={"mixed_groups": True, "max_age_versions": 0}
    )

    async def main() -> None:
        async with opened() as bench:
            bench.trainer = Counting()
            proposal = await lane.propose(bench)
            assert proposal.reason.startswith("3 updates in 3 rounds"), proposal.reason
            *_, last = rounds_of(bench.archive, "run-1")
            spec = bench.archive.get(last.dataset, Dataset).spec
            versions = spec["resolved"]["versions"]  # type: ignore[index,call-overload]
            assert versions[0] == "base" and versions[-1] == last.sampled_by and len(versions) == 3
            assert spec["training"]["parent"] == last.sampled_by  # type: ignore[index,call-overload]

    asyncio.run(main())


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
def test_the_session_trainer_names_its_divergence_as_the_guards_expect(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from tiny_llama import llama, rows, saved

    from agentloop.training.session import train

    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data", lines_of(rows(llama(), groups=4, size=4)), {})
    job = TrainingJob(
        method="agentloop.training.session:train", base=str(saved(tmp_path / "base")),
        dataset=str(tmp_path / "data" / NAME), out=str(tmp_path / "out"), seed=5,
        settings={"batch_size": 4, "learning_rate": 0.05, "precision": "float32",
                  "guards": {"max_kl": None, "min_entropy": None}},
    )  # fmt: skip
    metrics = train(job).metrics
    assert metrics["last_kl"] > 0.05
    with pytest.raises(TrainingError, match="left its reference"):
        watch(Guards(GuardSettings(max_kl=0.05, patience=1)), 1, metrics)


def test_a_trainer_that_fails_leaves_the_rounds_before(opened: Callable[..., Any]) -> None:
    class Fails(Counting):
        async def train(self, job: TrainingJob) -> TrainingResult:
            if len(self.jobs) == 1 and finished(job) is None:
                raise TrainingError("memory ran out")
            return await super().train(job)

    async def main() -> None:
        async with opened() as bench:
            bench.trainer = Fails()
            with pytest.raises(TrainingError, match="memory ran out"):
                await ROUNDS.propose(bench)
            [made] = rounds_of(bench.archive, "run-1")
            assert bench.policies.names() == [made.policy]
            assert bench.archive.verify()["ok"]

    asyncio.run(main())


def test_the_dry_trainer_goes_through_all_rounds(opened: Callable[..., Any]) -> None:
    async def main() -> None:
        async with opened() as bench:
            proposal = await Online(rounds=2, tasks=24, samples=2).propose(bench)
            assert proposal.state == "proposed", proposal.reason
            assert proposal.reason.startswith("2 updates in 2 rounds")
            episodes = bench.archive.episodes(Query(purpose="train"))
            assert len({one.task.id for one in episodes}) == 24
            assert len({one.seed for one in episodes}) == 96  # new random numbers in each round

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"settings": {"learning_rat": 1}}, "did you mean `learning_rate`"),
        ({"credit": "grou"}, "did you mean `group`"),
        ({"samples": 1}, "greater than or equal to 2"),
        ({"method": "agentloop.training.reward_model:train"}, "cannot serve as the agent"),
    ],
)
def test_mistakes_are_told_when_the_workflow_is_read(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Online(**fields)


def test_a_bundle_without_a_policy_runs_the_base_model() -> None:
    bundle = Bundle(instruction="i", policies={"agent": "a", "judge": "j"})
    assert with_policy(bundle, None).policies == {"judge": "j"}
    assert with_policy(bundle, "b").policies == {"agent": "b", "judge": "j"}


def reply(request: Request) -> str:
    last = request.messages[-1].content
    if last.startswith("Output:"):
        return f"Answer: {last.split()[1]}"
    a, b = [word.strip(".") for word in last.split() if word.strip(".").isdigit()]
    return f"```python\nprint({a} * {b})\n```" if (request.sampling.seed or 0) % 2 else "Answer: 42"


def one_call(one: Round) -> int:
    """Rollouts of one call instead of two."""
    return round(one.figures["rollouts"] * (1 - one.figures["solved"]))
