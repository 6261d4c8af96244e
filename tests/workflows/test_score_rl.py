"""Learning to correct oneself: what each attempt is paid and held to, the figures, the stages, what
a cycle leaves in the log, and the toy experiment that must fail without the method's parts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workflow_folder import ROOT, bars, folder

from agentloop.cli import run
from agentloop.datasets import advantages
from agentloop.graphs.load import load_graph
from agentloop.graphs.run import Runner
from agentloop.models.scripted import Scripted
from agentloop.records import Attempt, Episode, Limits, Sampling, Task
from agentloop.store.archive import Archive
from agentloop.store.query import Query

FOLDER = folder("score_rl")
STEPS, PROBLEMS = 100, 60
"""Updates and training problems in the tests: enough to see who learns to mend, a third of the
experiment's."""


def attempted(replies: list[str], *, expected: str = "5", turns: int = 2) -> Episode:
    graph = load_graph("two_attempts", [ROOT], ROOT)
    order = Attempt(
        task=Task(id="t", prompt="What is 2 + 3?", expected=expected), bundle="b", system="",
        purpose="eval", run="r", sampling=Sampling(seed=1),
    )  # fmt: skip
    running = Runner(graph).run(
        [order], model=Scripted(replies), tools=[], limits=Limits(turns=turns, seconds=20)
    )
    return asyncio.run(running)[0]


def scored(parts: ModuleType, episode: Episode) -> Any:
    [score] = asyncio.run(parts.BothAttempts().score([episode]))
    return score


# --- the reward and the figures -----------------------------------------------------------------


@pytest.mark.parametrize(("one", "two"), [("4", "5"), ("5", "4"), ("5", "5"), ("4", "6")])
def test_both_attempts_are_graded_apart(parts: ModuleType, one: str, two: str) -> None:
    score = scored(parts, attempted([f"2 + 3 = {one}\nAnswer: {one}", f"Answer: {two}"]))
    assert score.value == float(two == "5") and score.success is (two == "5")
    assert score.parts["first"] == float(one == "5")
    assert score.parts["total"] == score.parts["first"] + score.value


def test_a_rollout_without_a_second_attempt_is_wrong_but_its_first_is_known(
    parts: ModuleType,
) -> None:
    score = scored(parts, attempted(["Answer: 5"], turns=1))
    assert score.value == 0.0 and score.parts["first"] == 1.0


def test_the_same_text_again_is_no_edit(parts: ModuleType) -> None:
    text = "2 + 3 = 5, so the result is five and nothing else.\nAnswer: 5"
    assert not parts.edited(attempted([text, f"{text}\n "]))
    assert parts.edited(attempted([text, "Answer: 5"]))


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_the_gain_is_what_was_mended_less_what_was_spoilt(
    parts: ModuleType, pairs: list[tuple[bool, bool]]
) -> None:
    found = parts.transitions(pairs)
    assert found["delta"] == pytest.approx(found["mended"] - found["spoilt"], abs=1e-12)
    assert found["delta"] == pytest.approx(found["acc2"] - found["acc1"], abs=1e-12)
    swapped = parts.transitions([(b, a) for a, b in pairs])
    assert swapped["mended"] == found["spoilt"]


# --- the loss -----------------------------------------------------------------------------------


def gradient(measures: ModuleType, settings: dict[str, float], seed: int = 5) -> tuple[Any, Any]:
    """Of the loss at log-odds that have left the start, by the problems' rows and by the cues'."""
    torch = pytest.importorskip("torch")
    learner = measures.Learner.begin(seed)
    with torch.no_grad():
        learner.policy.table[: measures.TASKS, 0] += 0.5
    played = learner.world.play(learner.policy, measures.SAMPLES)
    paid = measures.credit(played, settings, shared=False)
    found: list[Any] = []
    learner.policy.step = lambda loss: found.extend(torch.autograd.grad(loss, learner.policy.table))
    learner.update(played, paid, settings["hold"])
    [whole] = found
    return whole[: measures.TASKS], whole[measures.TASKS :]


def test_the_first_stage_only_holds_the_first_attempt(measures: ModuleType) -> None:
    """No policy gradient on its tokens, a pull back to the start; the reverse on the second."""
    free, mends = gradient(measures, {"bonus": 0.0, "first": 0.0, "hold": 0.0})
    assert not free.any() and mends.any()
    held, same = gradient(measures, {"bonus": 0.0, "first": 0.0, "hold": 1.0})
    assert held.any() and bool((same == mends).all())
    assert float(held[:, 0].sum()) > 0, "what was made likelier is pulled down again"


def test_the_second_stage_pays_both(measures: ModuleType) -> None:
    first, second = gradient(measures, {"bonus": 10.0, "first": 1.0, "hold": 0.0})
    assert first.any() and second.any()


def test_a_stage_is_left_when_it_mends_and_the_first_attempt_has_not_moved(
    measures: ModuleType,
) -> None:
    plan = measures.StagePlan(stages=[measures.FIRST, measures.SECOND])
    steps = measures.FIRST.steps
    assert plan.next(0, steps, {"delta": 0.0, "moved": 0.0}) == 0
    assert plan.next(0, steps, {"delta": 0.05, "moved": 0.10}) == 0
    assert plan.next(0, steps, {"delta": 0.05, "moved": 0.01}) == 1


# --- the toy experiment -------------------------------------------------------------------------


BARS = bars("score_rl")


def test_the_bars_are_the_source_s() -> None:
    assert BARS["score.delta"] == 0.08 and BARS["score.spoilt"] == 0.08
    assert BARS["naive.abs_delta"] == 0.02


def test_it_learns_to_mend_and_not_without_its_anchor_or_with_its_credit_flipped(
    measures: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from agentloop.training import replay_tensors

    arm = measures.ARMS["score"]
    monkeypatch.setattr(measures, "TASKS", PROBLEMS)
    assert measures.learned(arm, 1, STEPS)["delta"] >= BARS["score.delta"]
    true = advantages.two_attempts
    with monkeypatch.context() as patch:
        patch.setattr(
            advantages, "two_attempts",
            lambda *given, **options: [(a, -b) for a, b in true(*given, **options)],
        )  # fmt: skip
        assert measures.learned(arm, 1, STEPS)["delta"] < BARS["score.delta"]
    kl = replay_tensors.masked_kl
    with monkeypatch.context() as patch:
        patch.setattr(replay_tensors, "masked_kl", lambda logp, ref, *more: kl(logp, logp, *more))
        assert measures.learned(arm, 1, 2 * STEPS)["delta"] < BARS["score.delta"]


# --- a cycle --------------------------------------------------------------------------------------


def test_scripted_cycles_go_through_the_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], parts: ModuleType
) -> None:
    for seed in (0, 1):
        command = ["cycle", str(FOLDER), "--model", "scripted", "--home", str(tmp_path), "--json"]
        assert run([*command, "--seed", str(seed)]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["lanes"]["policy"]["state"] != "skipped", report
    with Archive(tmp_path) as archive:
        facts = [one.body for one in archive.read(Query(kinds=(parts.EVENT,)))]
        assert [one["stage"] for one in facts] == [0, 1]  # type: ignore[index,call-overload]
        assert facts[1]["delta"] > 0.02  # type: ignore[index,call-overload,operator]
        collected = archive.episodes(Query(purpose="collect"))
        assert collected and all("first" in one.score.parts for one in collected if one.score)
