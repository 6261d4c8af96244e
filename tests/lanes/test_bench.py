"""The bench: scored episodes in the log, nothing paid twice, failures kept apart from results."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_workflow

from agentloop.errors import BudgetReached, GraderError, ModelError
from agentloop.lanes.bench import Bench, Order, score, skill_text
from agentloop.lanes.compose import compose
from agentloop.models.meter import FREE, Meter, Metered
from agentloop.models.scripted import Scripted
from agentloop.records import (
    Budget,
    Completion,
    Episode,
    Instruction,
    Limits,
    Request,
    Score,
    Skill,
    Task,
)
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.trajectories.examples import split_turns
from agentloop.workflows.assemble import Options, assemble
from agentloop.workflows.load import load
from agentloop.workspace import Workspace

EVAL = Order(purpose="eval", subject="heldout")


def answer(request: Request) -> str:
    a, b = (int(word.strip(".")) for word in request.messages[-1].content.split()[1::2])
    return f"Answer: {a * b if a % 2 else 0}"


class Closed:
    """A model that must not be asked."""

    async def complete(self, request: Request) -> Completion:
        raise AssertionError(request.key)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[], object]:
    """Opens a bench on a home that outlives it, with a model that answers odd tasks rightly."""
    folder = tiny_workflow.make(tmp_path)
    (tmp_path / "home").mkdir()

    @asynccontextmanager
    async def open_bench() -> AsyncIterator[tuple[Bench, list[Task]]]:
        space = Workspace((tmp_path, *Workspace.find().roots))
        with Archive(tmp_path / "home") as archive:
            options = Options(run="run-1", seed=0, workspace=space, home=tmp_path / "home")
            async with assemble(load(str(folder), space), archive, options) as kit:
                kit.bench.model = Scripted(answer)
                held = kit.bench.tasks.draw(99, split="heldout", seed=0)
                yield kit.bench, [one for one in held if int(one.id.rpartition("-")[2]) < 82]

    return open_bench


def test_scored_episodes_in_order_and_in_the_log(opened: Callable[..., object]) -> None:
    async def main() -> None:
        async with opened() as (bench, tasks):  # type: ignore[attr-defined]
            champion = bench.bundle(bench.champion)
            seen: list[tuple[str, int, int]] = []
            bench.progress = lambda stage, done, total, note="": seen.append((stage, done, total))
            episodes = await bench.attempt(tasks, champion, EVAL)
            assert [one.task for one in episodes] == tasks
            assert [one.success for one in episodes] == [int(t.id[-1]) % 2 == 1 for t in tasks]
            logged = bench.archive.episodes(Query(run="run-1"))
            assert {one.id: one.score for one in logged} == {one.id: one.score for one in episodes}
            assert seen[0] == ("heldout", 0, 12) and seen[-1] == ("heldout", 12, 12)
            system = episodes[0].trajectories[0].nodes[0].message
            assert system.role == "system" and "Solve the task." in system.content

    asyncio.run(main())


def test_known_attempts_are_not_made_again_even_by_another_process(
    opened: Callable[..., object],
) -> None:
    async def main() -> None:
        async with opened() as (bench, tasks):  # type: ignore[attr-defined]
            first = await bench.attempt(tasks[:4], bench.bundle(bench.champion), EVAL)
        async with opened() as (bench, tasks):  # type: ignore[attr-defined]
            champion = bench.bundle(bench.champion)
            bench.model = Closed()
            again = await bench.attempt(tasks[:4], champion, EVAL)
            assert [(e.id, e.score, e.answer) for e in again] == [
                (e.id, e.score, e.answer) for e in first
            ]
            bench.model = Scripted(answer)
            more = await bench.attempt(tasks[:5], champion, EVAL)
            assert bench.model.calls == 1 and len(more) == 5
            twice = await bench.attempt(tasks[:2], champion, Order("train", "other", samples=2))
            assert len({e.id for e in twice}) == 4
            assert len({e.seed for e in twice}) == 4  # tasks do not share a random stream

    asyncio.run(main())


def test_no_other_rollout_stands_in_for_an_attempt(opened: Callable[..., object]) -> None:
    async def main() -> None:
        async with opened() as (bench, tasks):  # type: ignore[attr-defined]
            champion = bench.bundle(bench.champion)
            [order] = await bench.orders(tasks[:1], champion, EVAL)
            lie = Episode(
                id=f"{order.id}0", task=order.task, bundle=order.bundle, purpose="eval",
                run="another", seed=0, answer="lie",
            )  # fmt: skip
            await bench.archive.add_episodes([lie], scope=bench.workflow)
            [made] = await bench.attempt(tasks[:1], champion, EVAL)
            assert (made.id, made.run) == (order.id, "run-1") and made.answer != "lie"
            [second] = await bench.orders(tasks[1:2], champion, EVAL)
            lie = replace(lie, id=second.id, task=second.task)
            await bench.archive.add_episodes([lie], scope=bench.workflow)
            [made] = await bench.attempt(tasks[1:2], champion, EVAL)
            assert made.run == "run-1" and made.answer != "lie"

    asyncio.run(main())


def test_an_infrastructure_failure_is_unscored_and_tried_again(
    opened: Callable[..., object],
) -> None:
    """Twice, in the middle of a rollout: both tries are in the log, neither under its id."""

    def fails(request: Request) -> str:
        if request.messages[-1].content.startswith("Output:"):
            raise ModelError("no answer", reason="model_timeout")
        asked = request.messages[-1].content
        return "```python\nprint(1)\n```" if " 71 " in asked else answer(request)

    async def main() -> None:
        async with opened() as (bench, tasks):  # type: ignore[attr-defined]
            champion = bench.bundle(bench.champion)
            bench.model = Scripted(fails)
            for tries in (1, 2):
                if tries == 1:  # one of many: a record
                    episodes = await bench.attempt(tasks, champion, EVAL)
                    [failed] = [one for one in episodes if one.failure is not None]
                else:  # all that is left to do fails: an outage
                    with pytest.raises(ModelError, match="1 of 1 rollouts failed"):
                        await bench.attempt(tasks, champion, EVAL)
                assert failed.failure.reason == "model_timeout" and failed.score is None
                assert bench.archive.episode(failed.id) is None
                logged = [e for e in bench.archive.episodes() if e.failure is not None]
                assert len(logged) == tries and all(one.score is None for one in logged)
            bench.model = Scripted(["Answer: 8591"])  # it goes on after the step that ended
            [again] = await bench.attempt([failed.task], champion, EVAL)
            assert bench.model.calls == 1 and again.id == failed.id and again.success

    asyncio.run(main())


def test_a_bundle_that_breaks_its_own_calls_is_no_outage(opened: Callable[..., object]) -> None:
    """The endpoint refuses what it sends (a filter, say), and answers the champion. The next time
    the endpoint is down for both."""
    down = False

    def refuses(request: Request) -> str:
        system = next((m.content for m in request.messages if m.role == "system"), "")
        if down or "forbidden" in system:
            raise ModelError("400: not this prompt")
        return answer(request)

    async def main() -> None:
        nonlocal down
        async with opened() as (bench, tasks):  # type: ignore[attr-defined]
            bench.model = Scripted(refuses)
            champion = bench.bundle(bench.champion)
            words = bench.archive.put(Instruction(text="forbidden words"))
            challenger = replace(champion, instruction=words)
            for _ in range(2):  # nothing of it is known the second time: it is asked again
                made = await bench.attempt(tasks, challenger, EVAL)
                assert [one.failure.reason for one in made] == ["model_error"] * len(tasks)
                assert not any(one.score for one in made)
            asked = [one for one in bench.archive.episodes() if one.bundle == bench.champion]
            assert len(asked) == 8 and all(one.purpose == "eval" for one in asked)
            down = True
            with pytest.raises(ModelError, match=f"{len(tasks)} of {len(tasks)} rollouts failed"):
                await bench.attempt(tasks, challenger, EVAL)
            with pytest.raises(ModelError):
                await bench.attempt(tasks, champion, EVAL)

    asyncio.run(main())


def test_a_failure_of_the_agent_is_scored(opened: Callable[..., object]) -> None:
    async def main() -> None:
        async with opened() as (bench, tasks):  # type: ignore[attr-defined]
            bench.limits = Limits(turns=1)
            bench.model = Scripted(lambda request: "```python\nprint(1)\n```")
            [episode] = await bench.attempt(tasks[:1], bench.bundle(bench.champion), EVAL)
            assert episode.failure.reason == "turn_limit"
            assert episode.score is not None and episode.score.value == 0.0
            bench.model = Closed()
            [known] = await bench.attempt(tasks[:1], bench.bundle(bench.champion), EVAL)
            assert known.failure == episode.failure

    asyncio.run(main())


def test_a_spent_budget_stops_and_keeps_what_was_finished(opened: Callable[..., object]) -> None:
    async def main() -> None:
        async with opened() as (bench, tasks):  # type: ignore[attr-defined]
            champion = bench.bundle(bench.champion)
            bench.concurrency = 1
            bench.model = Metered(Scripted(answer), Meter(Budget(tokens=60), FREE))
            with pytest.raises(BudgetReached):
                await bench.attempt(tasks, champion, EVAL)
            kept = bench.archive.episodes(Query(run="run-1"))
            assert 0 < len(kept) < 12 and all(one.score is not None for one in kept)
            bench.model = Scripted(answer)
            assert len(await bench.attempt(tasks, champion, EVAL)) == 12
            assert bench.model.calls == 12 - len(kept)

    asyncio.run(main())


class Faulty:
    """A reward that fails as a whole, and by itself on one episode."""

    async def score(self, episodes: Sequence[Episode]) -> list[Score]:
        if any(one.task.id == "t1" for one in episodes):
            raise GraderError("the grader raised KeyError")
        return [Score(value=1.0, success=True, source="s") for _ in episodes]


def test_a_grader_that_fails_on_one_episode_spares_the_others() -> None:
    episodes = [
        Episode(id=f"e{n}", task=Task(id=f"t{n}", prompt="?"), bundle="b", purpose="eval",
                run="r", seed=0) for n in range(3)
    ]  # fmt: skip
    scored = asyncio.run(score(Faulty(), episodes))
    assert [one.success for one in scored] == [True, False, True]
    assert scored[1].score is None and scored[1].failure is not None
    assert scored[1].failure.reason == "grader_error" and "KeyError" in scored[1].failure.detail


def test_a_skill_is_shown_without_its_front_matter() -> None:
    document = "---\nname: x\ndescription: y\n---\n\nBody\n---\nmore\n"
    skill = Skill(name="x", description="y", document=document)
    assert skill_text(skill) == "## Skill: x\n\nBody\n---\nmore"
    skill = Skill(name="x", description="y", document=document)
    assert skill_text(skill) == "## Skill: x\n\nBody\n---\nmore"


def test_examples_of_an_instruction_do_not_swallow_a_skill() -> None:
    turns_of = "Assistant:\n```python\nprint(1)\n```\n\nOutput:\n1\n\nAssistant:\nAnswer: 1"
    example = "Question: {}?\n\n" + turns_of
    body = f"Tasks such as: sums.\n\n{example.format('b')}"
    document = f"---\nname: sums\ndescription: Adds.\n---\n{body}"
    skill = Skill(name="sums", description="Adds.", document=document)
    system, turns = split_turns(compose(f"Be brief.\n\n{example.format('a')}", [skill_text(skill)]))
    assert [turn.content for turn in turns if turn.role == "assistant"][1::2] == ["Answer: 1"] * 2
    assert "Tasks such as: sums." in system and "Answer" not in system
