"""A reward for searching beside the outcome: what an episode is paid, the judge that fails, and the
toy experiment that must fail when its part is removed or turned around."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from workflow_folder import bounds, folder, replied

from agentloop.datasets.credit import CriticsCredit
from agentloop.errors import UsageError
from agentloop.records import Episode, Failure
from agentloop.rewards import penalties
from agentloop.store.archive import Archive
from agentloop.store.query import Query

FOLDER = folder("rlsp")
BARS = bounds("rlsp")


# --- unit properties ----------------------------------------------------------------------------


def words(n: int) -> str:
    return " ".join(f"w{at}" for at in range(n))


def sample(text: str, name: str = "e") -> Episode:
    return replied(name, text, ids=(2,), answer=text[-9:] or None)


def scored(parts: ModuleType, texts: dict[str, str], **keys: object) -> dict[str, Episode]:
    made = [sample(text, name) for name, text in texts.items()]
    scores = asyncio.run(parts.Searching(**keys).score(made))
    return {one.id: replace(one, score=score) for one, score in zip(made, scores, strict=True)}


def paid(episode: Episode, name: str = "") -> float:
    assert episode.score is not None
    kept = episode.score.parts
    return kept[name] if name else kept["correct"] + kept["exploration"]


@pytest.mark.parametrize(
    ("length", "right", "wrong"),
    [
        (250, -3.0, -4.0),
        (500, -1.0, -2.0),
        (1000, 0.0, -1.0),
        (2000, 0.5, -0.5),
        (4000, 0.75, -0.25),
    ],
)
def test_the_published_table_on_episodes(
    parts: ModuleType, length: int, right: float, wrong: float
) -> None:
    thought = words(length)
    texts = {"right": f"{thought}\nAnswer: 5", "wrong": f"{thought}\nAnswer: 6"}
    found = scored(parts, texts, cost=1000.0, longest=None, ngram=1)
    assert (paid(found["right"]), paid(found["wrong"])) == (right, wrong)


def test_orders(parts: ModuleType) -> None:
    texts = {
        f"{kind} {n}": f"{words(n)}\nAnswer: {answer}"
        for kind, answer in (("right", 5), ("wrong", 6))
        for n in (10, 40)
    }
    found = scored(parts, {**texts, "none": words(10), "empty": "Answer: 5"})
    assert paid(found["right 40"]) > paid(found["right 10"])
    assert paid(found["wrong 40"]) > paid(found["wrong 10"])
    assert paid(found["none"], "correct") == -0.5
    for n in (10, 40):
        right, wrong = found[f"right {n}"], found[f"wrong {n}"]
        assert paid(right, "exploration") == paid(wrong, "exploration")
        assert paid(right) - paid(wrong) == 1.0
    assert paid(found["empty"]) == min(map(paid, found.values()))
    gains = scored(parts, {str(n): f"{words(n)} Answer: 5" for n in (10, 11, 12)}, ngram=1)
    assert paid(gains["11"]) - paid(gains["10"]) > paid(gains["12"]) - paid(gains["11"]) > 0


def test_the_first_answer_counts_and_padding_does_not(parts: ModuleType) -> None:
    texts = {
        "two": f"{words(9)}\nAnswer: 6\n{words(30)}\nAnswer: 5",
        "one": f"{words(9)}\nAnswer: 6",
        "padded": f"{words(9)} {'so it is so it is ' * 30}\nAnswer: 6",
        "far": f"{words(500)}\nAnswer: 6",
        "near": f"{words(60)}\nAnswer: 6",
    }
    found = scored(parts, texts)
    assert paid(found["two"]) == paid(found["one"]) and not found["two"].success
    assert paid(found["padded"], "length") <= paid(found["one"], "length") + 8
    assert paid(found["far"]) == paid(found["near"])  # beyond `longest`


def test_a_rollout_that_failed_gave_no_answer(parts: ModuleType) -> None:
    stopped = replace(
        sample("2 + 3 = 5\nAnswer: 5"), failure=Failure(reason="turn_limit", detail="x")
    )
    [score] = asyncio.run(parts.Searching().score([stopped]))
    assert score.parts["correct"] == -0.5 and score.value == 0.0


def judge(tmp_path: Path, body: str) -> str:
    path = tmp_path / "judge.py"
    path.write_text(f"def effort(question, thought):\n    {body}\n", encoding="utf-8")
    return f"{path}:effort"


@pytest.mark.parametrize(
    ("body", "effort", "failed"),
    [
        ("return 0.9", 0.9, 0.0),
        ("return None", 0.5, 1.0),
        ("return 7", 0.5, 1.0),
        ("raise TimeoutError('no reply')", 0.5, 1.0),
    ],
)
def test_a_judge_that_fails_counts_half_and_is_on_record(
    parts: ModuleType, tmp_path: Path, body: str, effort: float, failed: float
) -> None:
    found = scored(parts, {"e": f"{words(9)} Answer: 5"}, judge=judge(tmp_path, body))["e"]
    assert (paid(found, "effort"), paid(found, "judge_failed")) == (effort, failed)
    assert paid(found, "correct") == 1.0 and found.score is not None
    assert ("no reply" in found.score.feedback) is ("raise" in body)


def test_a_judge_that_is_no_function_is_told(parts: ModuleType) -> None:
    with pytest.raises(UsageError, match="is no function"):
        scored(parts, {"e": "Answer: 5"}, judge="agentloop:__version__")


def test_both_signals_reach_the_advantage_apart(parts: ModuleType) -> None:
    texts = {
        "right short": f"{words(5)} Answer: 5", "right long": f"{words(40)} Answer: 5",
        "wrong short": f"{words(5)} Answer: 6", "wrong long": f"{words(40)} Answer: 6",
    }  # fmt: skip
    made = list(scored(parts, texts).values())
    both = CriticsCredit(weights={"correct": 1.0, "exploration": 0.5}).assign(made)
    worth = [both[name, 0, 1] for name in texts]
    assert worth == pytest.approx([0.5, 1.5, -1.5, -0.5])
    times_100 = list(scored(parts, texts, cost=600.0).values())
    again = CriticsCredit(weights={"correct": 1.0, "exploration": 0.5}).assign(times_100)
    assert [again[name, 0, 1] for name in texts] == pytest.approx(worth)


# --- the toy experiment -------------------------------------------------------------------------


def test_the_bars_are_the_proposals() -> None:
    assert BARS["over_sft"] == (">=", 0.05) and BARS["over_outcome"] == (">=", -0.01)
    assert BARS["marks_ratio"] == (">=", 1.3) and BARS["repeated_ratio"] == ("<=", 1.2)


def test_a_walk_is_scored_by_what_it_saw(measures: ModuleType) -> None:
    pytest.importorskip("torch")
    toy = measures.toy()

    def walk(moves: list[str], right: int = 1) -> Episode:
        one = toy.Walk(kind=3, right=right, chance=random.Random(0))
        for name in moves:
            one.move(toy.MOVES.index(name), -1.0)
        return toy.episode(one, "e", "t", distinct=True)  # type: ignore[no-any-return]

    assert walk(["answer"]).score.parts == {"correct": 0.0, "exploration": -1.0}  # type: ignore[union-attr]
    honest = walk(["check", "next", "check", "answer"])
    assert honest.success and honest.score.parts["exploration"] == -0.25  # type: ignore[union-attr]
    padded = walk(["pad"] * 12)
    assert padded.score.parts == {"correct": -0.5, "exploration": -1.0}  # type: ignore[union-attr]
    nodes = honest.trajectories[0].nodes
    assert [node.sampled for node in nodes] == [False, True] * 4
    assert len(nodes[0].token_ids) == 2  # its kind and its first candidate


def misses(found: dict[str, float]) -> set[str]:
    return {
        name
        for name, (op, bar) in BARS.items()
        if not (found[name] >= bar if op == ">=" else found[name] <= bar)
    }


def missed(measures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """By a run of the experiment that is judged on fewer tasks than the check's, too few for the
    share of repeated runs."""
    pytest.importorskip("torch")
    monkeypatch.setattr(measures, "TEST", 1500)
    return misses(measures.simulate(11)) - {"repeated_ratio"}


@pytest.mark.slow
def test_the_comparison(measures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert missed(measures, monkeypatch) == set()


Reward = Callable[..., dict[str, float]]


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_without_its_part_or_with_its_sign_flipped_nothing_is_searched(
    measures: ModuleType, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    true: Reward = penalties.searching

    def broken(*given: object) -> dict[str, float]:
        found = true(*given)
        return {**found, "exploration": factor * found["exploration"]}

    monkeypatch.setattr(penalties, "searching", broken)
    assert "marks_ratio" in missed(measures, monkeypatch)


@pytest.mark.slow
def test_a_loss_with_its_sign_flipped_unlearns(
    measures: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from agentloop.training import losses

    true = losses.policy_gradient

    def flipped(logp: object, old: object, advantages: object, *given: object) -> losses.Loss:
        return true(logp, old, -advantages, *given)  # type: ignore[operator,arg-type]

    monkeypatch.setattr(losses, "policy_gradient", flipped)
    assert "over_sft" in missed(measures, monkeypatch)


# --- a cycle --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("report")
def test_a_scripted_cycle_keeps_both_signals_in_the_log(tmp_path: Path) -> None:
    with Archive(tmp_path) as archive:
        made = [one.score for one in archive.episodes(Query(purpose="collect")) if one.score]
    assert {one.parts["correct"] for one in made} == {1.0, 0.0, -0.5}
    failed = [one for one in made if one.parts["judge_failed"]]
    assert failed and all(one.parts["effort"] == 0.5 for one in failed)
    assert len({one.parts["exploration"] for one in made}) > 2
