"""Reward model and policy in turns: what enters the reward model, what is chosen, what an executor
printed, and the toy experiment that must fail when the loss or the vote is broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from workflow_folder import ROOT, bars, folder

from agentloop.datasets.decontaminate import Decontaminate
from agentloop.datasets.rows import sft_rows
from agentloop.graphs.load import load_graph
from agentloop.graphs.run import Runner
from agentloop.models.scripted import Scripted
from agentloop.records import Attempt, Episode, Limits, Request, Row, Sampling, Score, Task
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.tools.spec import tool

FOLDER = folder("qwen_math")


BARS = bars("qwen_math")


# --- unit properties ----------------------------------------------------------------------------


def test_a_problem_with_another_number_is_the_same_problem() -> None:
    heldout = (
        "A farmer has 17 baskets with 24 apples each and sells 9 apples to every one of his 12 "
        "neighbours. How many apples does the farmer have left in the end?"
    )
    swapped = heldout.replace("17", "18").replace("24", "25")
    other = "A train leaves at 9 and arrives at 12. How long does the journey of the train take?"
    assert Decontaminate().repeated([swapped, other], [heldout]) == [0, None]


def group(parts: ModuleType, right: list[bool], *, known: bool, answers: list[str]) -> Any:
    def episode(at: int) -> Episode:
        score = Score(value=float(right[at]), success=right[at], source="s")
        return Episode(
            id=f"e{at}", task=Task(id="t", prompt="p"), bundle="b", purpose="collect", run="r",
            seed=at, answer=answers[at], score=score,
        )  # fmt: skip

    rows = [Row(episode=f"e{at}", prompt=(), segments=((at,),), sampled=(True,))
            for at in range(len(right))]  # fmt: skip
    episodes = tuple(episode(at) for at in range(len(right)))
    return parts.Group("t", known, episodes, tuple(rows))


@pytest.mark.parametrize(("right", "mixed"), [([True] * 6, False), ([False] * 6, False),
                                              ([True] * 5 + [False], True)])  # fmt: skip
def test_only_groups_of_both_kinds_rank(parts: ModuleType, right: list[bool], mixed: bool) -> None:
    assert group(parts, right, known=True, answers=["1"] * 6).mixed is mixed


def test_the_best_by_reward_among_the_right_ones(parts: ModuleType) -> None:
    one = group(parts, [True, False, True, True], known=True, answers=["1", "2", "1", "1"])
    scores = {"e0": 0.1, "e1": 9.0, "e2": 0.3, "e3": 0.2}
    loop = parts.RewardModelLoop(top=2)
    assert [row.episode for row in loop.choose(one, scores)] == ["e2", "e3"]
    twice = replace(one, rows=tuple(replace(row, segments=((7,),)) for row in one.rows))
    assert [row.episode for row in loop.choose(twice, scores)] == ["e2"]


def test_without_a_label_the_weighted_vote_decides(parts: ModuleType) -> None:
    one = group(parts, [False, False, True], known=False, answers=["2", "2", "1"])
    loop = parts.RewardModelLoop(top=2)
    even = dict.fromkeys(("e0", "e1", "e2"), 0.0)
    assert [row.episode for row in loop.choose(one, even)] == ["e0", "e1"]
    ranked = {"e0": -4.0, "e1": -4.0, "e2": 4.0}
    assert [row.episode for row in loop.choose(one, ranked)] == ["e2"]


@tool
def python(code: str) -> str:
    """Run code."""
    return f"ran {code}"


def reason(replies: Any, turns: int = 8) -> Episode:
    import asyncio

    runner = Runner(load_graph("./graph.py:graph", [ROOT], FOLDER), native_tools=False)
    order = Attempt(
        task=Task(id="t", prompt="What is 2 * 3?"), bundle="b", system="", purpose="eval", run="r",
        sampling=Sampling(seed=1),
    )  # fmt: skip
    limits = Limits(turns=turns, seconds=20)
    running = runner.run([order], model=Scripted(replies), tools=[python], limits=limits)
    return asyncio.run(running)[0]


PROGRAM = "Let me see.\n```python\nprint(2 * 3)\n```"


def test_what_a_program_printed_has_no_loss() -> None:
    episode = reason([PROGRAM, "Answer: 6"])
    assert episode.answer == "6"
    [row] = sft_rows([episode], system="")
    assert row.sampled == (True, False, True)
    contents = [node.message.content for node in episode.trajectories[0].nodes]
    assert contents[2] == "Output:\nran print(2 * 3)"


def test_a_made_up_output_is_cut_where_it_would_begin() -> None:
    """The engine is asked to stop there; one that does never says it."""
    faked = f"{PROGRAM}\n```output\n7\n```\nAnswer: 7"

    def stopped(request: Request) -> str:
        said = faked if len(request.messages) == 1 else "Answer: 6"
        for mark in request.sampling.stop:
            said = said.partition(mark)[0]
        return said

    episode = reason(stopped)
    assert episode.answer == "6"
    assert not any("7" in node.message.content for node in episode.trajectories[0].nodes)


def test_at_most_four_programs_run() -> None:
    said: list[str] = []

    def stubborn(request: Request) -> str:
        said.append(request.messages[-1].content)
        return PROGRAM if len(said) < 6 else "Answer: 6"

    episode = reason(stubborn)
    assert episode.failure is None and len(said) == 6
    assert [one.startswith("Output:\nran") for one in said] == [False] + [True] * 4 + [False]
    assert "limit" in said[-1]
    boxed = reason(["\\boxed{6}\n" + PROGRAM])
    assert boxed.usage.calls == 1 and boxed.answer == "6"


# --- the toy experiment -------------------------------------------------------------------------


def test_the_bars_are_the_source_s() -> None:
    assert BARS["rm_minus_maj"] == 0.10 and BARS["weighted_minus_maj"] == 0.05


def misses(found: dict[str, float]) -> list[str]:
    return [name for name, bar in BARS.items() if found[name] < bar]


def test_the_reward_model_helps_and_not_when_its_loss_is_flipped(
    measures: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from agentloop.training import losses

    assert misses(measures.simulate(11, shuffles=1)) == []
    true = losses.listwise
    monkeypatch.setattr(losses, "listwise", lambda scores, good: true(scores, ~good))
    assert {"rm_minus_maj", "weighted_minus_maj"} <= set(misses(measures.simulate(11, shuffles=1)))


def test_a_vote_without_its_weights_is_a_plain_vote(
    measures: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(measures, "sigmoid", lambda score: 1.0)
    assert "weighted_minus_maj" in misses(measures.simulate(11, shuffles=1))
    monkeypatch.setattr(measures, "best_of_n", lambda scores: 0)
    assert "rm_minus_maj" in misses(measures.simulate(11, shuffles=1))


# --- a cycle --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("report")
def test_a_scripted_cycle_ranks_votes_and_trains(tmp_path: Path) -> None:
    with Archive(tmp_path) as archive:
        [entry] = list(archive.read(Query(kinds=("reward_model",))))
        body = SimpleNamespace(**entry.body)  # type: ignore[arg-type]
        assert body.lists > 0 and body.chosen >= 4 and body.pairs > 0
        assert body.pairs_right > body.pairs / 2
        collected = archive.episodes(Query(purpose="collect"))
        assert {one.task.id for one in collected} and replace(collected[0], score=None)
