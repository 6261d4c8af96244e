"""Encouraged exploration: which tasks get large groups, what degenerate text is paid, answers at a
budget, and the toy experiments that must fail when the part they are about is broken."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workflow_folder import ROOT, bounds, folder, replied

from agentloop.datasets import advantages
from agentloop.datasets.credit import GroupCredit
from agentloop.datasets.groups import mixed
from agentloop.graphs.load import load_graph
from agentloop.graphs.run import Runner
from agentloop.models.scripted import Scripted
from agentloop.records import (
    Attempt,
    Episode,
    Limits,
    Request,
    Sampling,
    Score,
    Task,
)  # fmt: skip
from agentloop.rewards.penalties import Patterns
from agentloop.store.archive import Archive
from agentloop.store.query import Query

FOLDER = folder("t1")
BARS = bounds("t1")


def misses(found: dict[str, float]) -> set[str]:
    return {
        name
        for name, (op, bar) in BARS.items()
        if name in found and not (found[name] >= bar if op == ">=" else found[name] <= bar)
    }


# --- unit properties ----------------------------------------------------------------------------


def sample(name: str, task: str, right: bool, text: str = "2 + 3 = 5") -> Episode:
    ids, score = (
        tuple(range(len(text.split()))),
        Score(value=float(right), success=right, source="s"),
    )
    return replied(name, text, ids=ids, answer="5" if right else "6", task=task, score=score)


@pytest.mark.parametrize(
    ("p", "size", "known"),
    [(0.02, 8, 0.149), (0.02, 16, 0.276), (0.02, 64, 0.726), (0.05, 64, 0.962)],
)
def test_how_often_a_group_is_mixed(p: float, size: int, known: float) -> None:
    """1 - p^K - (1 - p)^K, simulated; and the shipped condition tells the same groups."""
    assert 1 - p**size - (1 - p) ** size == pytest.approx(known, abs=6e-4)
    chance = random.Random(36)
    drawn = [[chance.random() < p for _ in range(size)] for _ in range(4000)]
    taught = [len(set(group)) > 1 for group in drawn]
    assert sum(taught) / len(taught) == pytest.approx(known, abs=0.025)
    made = [
        sample(f"{at}/{number}", f"t{at}", right)
        for at, group in enumerate(drawn[:10])
        for number, right in enumerate(group)
    ]
    told = {int(name.partition("/")[0]) for name in mixed(made)}
    assert told == {at for at, one in enumerate(taught[:10]) if one}


def test_a_small_group_teaches_more_per_sample_and_a_large_one_per_task() -> None:
    def share(p: float, size: int) -> float:
        return 1 - p**size - (1 - p) ** size

    assert share(0.02, 64) >= 3 * share(0.02, 8)
    assert 8 * share(0.02, 8) > share(0.02, 64)


@given(st.lists(st.booleans(), min_size=2, max_size=8))
def test_a_sample_is_paid_by_the_others(right: list[bool]) -> None:
    made = [sample(str(at), "t", one) for at, one in enumerate(right)]
    paid = GroupCredit(baseline="leave_one_out").assign(made)
    assert sum(paid.values()) == pytest.approx(0, abs=1e-9)
    for at, one in enumerate(right):
        others = right[:at] + right[at + 1 :]
        assert paid[str(at), 0, 1] == pytest.approx(one - sum(others) / len(others))


def test_large_groups_are_for_hard_tasks(parts: ModuleType) -> None:
    budget = parts.SampleBudget(below=0.1)
    rates = {"never": 0, "rarely": 1, "often": 4}
    made = [
        sample(f"{task}{at}", task, at < right) for task, right in rates.items() for at in range(11)
    ]
    tasks = [Task(id=name, prompt=name) for name in (*rates, "unscored")]
    assert [task.id for task in budget.hard(tasks, made)] == ["never", "rarely"]
    assert budget.rollouts == 24 * 64


LOOP = "and add them up once more please " * 6
MIXED = "we add сложим числа ещё раз and carry"


@pytest.mark.parametrize(("text", "sign"), [("2 + 3 = 5", ""), (LOOP, "loop"),
                                            (MIXED, "charset"), ("x " * 9, "length")])  # fmt: skip
def test_a_degenerate_text_is_fined_however_right(parts: ModuleType, text: str, sign: str) -> None:
    reward = parts.Penalised(longest=8 if sign == "length" else None)
    words = text.split()
    one = sample("e", "t", True, text)
    [node] = [node for node in one.trajectories[0].nodes if node.sampled]
    assert len(node.token_ids) == len(words)
    if sign == "loop":  # ids are what is counted
        ids = tuple(words.index(word) for word in words)
        one = with_ids(one, ids)
    [score] = asyncio.run(reward.score([one]))
    assert score.parts["reward"] == (-1.0 if sign else 1.0)
    assert score.success is not bool(sign) and 0 <= score.value <= 1
    assert [name for name in ("loop", "length", "charset") if score.parts[name]] == [sign] * bool(
        sign
    )
    wrong = asyncio.run(reward.score([sample("w", "t", False)]))[0]
    assert wrong.parts["reward"] == 0.0 and not wrong.success


def with_ids(episode: Episode, ids: tuple[int, ...]) -> Episode:
    [trajectory] = episode.trajectories
    last = replace(trajectory.nodes[-1], token_ids=ids, logprobs=(0.0,) * len(ids))
    nodes = (*trajectory.nodes[:-1], last)
    return replace(episode, trajectories=(replace(trajectory, nodes=nodes),))


def test_the_fine_reaches_the_advantage(parts: ModuleType) -> None:
    made = [sample("a", "t", True), sample("b", "t", False), sample("c", "t", True, MIXED)]
    scores = asyncio.run(parts.Penalised().score(made))
    scored = [replace(one, score=score) for one, score in zip(made, scores, strict=True)]
    paid = GroupCredit(baseline="leave_one_out", of="reward").assign(scored)
    assert paid["a", 0, 1] > paid["b", 0, 1] > paid["c", 0, 1]


@pytest.mark.parametrize(("curve", "rank"), [([0.1, 0.2, 0.3], 1.0), ([0.3, 0.2, 0.1], -1.0),
                                             ([0.2, 0.2, 0.2], 0.0)])  # fmt: skip
def test_rank_correlation(measures: ModuleType, curve: list[float], rank: float) -> None:
    assert measures.spearman(curve) == pytest.approx(rank)


@pytest.mark.parametrize(("right", "ratio"), [
    ({("a", 3), ("b", 12)}, 2.0),  # one of b's two later groups of eight taught something
    ({("b", 12), ("b", 20)}, 1.0),  # both did: the large one is no better
    ({("a", 3)}, 0.0),  # what chose the task does not count
])  # fmt: skip
def test_informative_groups_are_those_that_did_not_choose_the_task(
    measures: ModuleType, right: set[tuple[str, int]], ratio: float
) -> None:
    made = [
        replace(sample(f"{task}{at}", task, (task, at) in right), sample=at)
        for task in ("a", "b", "c")
        for at in range(24)
    ]
    assert measures.informative(made) == {"hard_tasks": 3.0, "informative_ratio": ratio}


# --- an answer at a budget ------------------------------------------------------------------------


def think(replies: Any) -> tuple[Episode, list[Request]]:
    seen: list[Request] = []

    def reply(request: Request) -> str:
        seen.append(request)
        return str(replies[len(seen) - 1])

    runner = Runner(load_graph("./graph.py:graph", [ROOT], FOLDER), native_tools=False)
    order = Attempt(
        task=Task(id="t", prompt="What is 2 + 3?"), bundle="b", system="", purpose="eval", run="r",
        sampling=Sampling(seed=1, max_tokens=20),
    )  # fmt: skip
    limits = Limits(turns=3, seconds=20)
    [episode] = asyncio.run(runner.run([order], model=Scripted(reply), tools=[], limits=limits))
    return episode, seen


def test_an_answer_within_the_budget_ends_it() -> None:
    episode, seen = think(["2 + 3 = 5\nAnswer: 5"])
    assert episode.answer == "5" and [one.sampling.max_tokens for one in seen] == [20]


def test_a_thought_that_is_cut_off_is_answered_by_the_same_model() -> None:
    episode, seen = think(["2 + 3 is", "Answer: 5"])
    assert episode.answer == "5" and [one.sampling.max_tokens for one in seen] == [20, 12]
    assert [one.role for one in seen[1].messages[-2:]] == ["assistant", "user"]


# --- the toy experiments ------------------------------------------------------------------------


def test_the_bars_are_the_source_s() -> None:
    assert BARS["fixed_gap"] == ("<=", 0.01) and BARS["ema"] == (">=", 0.95)


def short(measures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Fewer and larger steps than the check has: enough for what is told apart here."""
    pytest.importorskip("torch")
    monkeypatch.setattr(measures, "RATE", 2.0)
    monkeypatch.setattr(measures, "TAIL", 50)
    return misses(measures.leashes(11, steps=300))


def test_the_leash(measures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert short(measures, monkeypatch) == set()


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_without_its_divergence_nothing_is_held(
    measures: ModuleType, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    pytest.importorskip("torch")
    from agentloop.training import replay_tensors

    true = replay_tensors.centred_kl
    monkeypatch.setattr(replay_tensors, "centred_kl", lambda *given: factor * true(*given))
    assert "fixed_gap" in short(measures, monkeypatch)


@pytest.mark.slow
def test_an_average_that_does_not_follow_is_a_fixed_leash(
    measures: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from agentloop.training.anchors import Anchor

    monkeypatch.setattr(Anchor, "follow", lambda anchor: None)
    assert short(measures, monkeypatch) == {"ema"}


@pytest.mark.slow
def test_credit_with_its_sign_flipped_unlearns(
    measures: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = advantages.leave_one_out
    monkeypatch.setattr(advantages, "leave_one_out", lambda given: [-one for one in true(given)])
    assert short(measures, monkeypatch) == {"fixed_gap", "ema"}


def test_the_fine_and_what_is_left_without_it(
    measures: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    assert misses(measures.fines(11, rounds=100)) == set()
    monkeypatch.setattr(Patterns, "found", lambda self, text, tokens=None: ())
    assert misses(measures.fines(11, rounds=100)) == {"degenerate", "unfined_minus_fined"}


# --- a cycle --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("report")
def test_a_scripted_cycle_samples_hard_tasks_more_often(tmp_path: Path) -> None:
    with Archive(tmp_path) as archive:
        made = archive.episodes(Query(purpose="collect"))
    sizes = {one.task.id: sum(two.task.id == one.task.id for two in made) for one in made}
    assert set(sizes.values()) <= {8, 64}
    rewards = {one.score.parts["reward"] for one in made if one.score}
    assert rewards == {-1.0, 0.0, 1.0}
