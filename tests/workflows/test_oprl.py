"""Step rewards learned online: what they add up to and what they pay, what a cycle leaves in the
log, and the toy experiment that must fail when the second model learns nothing or the reverse."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from workflow_folder import bars, folder

from agentloop.datasets.credit import GroupCredit, StepCredit
from agentloop.datasets.segments import Segment
from agentloop.errors import ServerError
from agentloop.records import Endpoint, Episode, Message, Node, Score, Task, Trajectory
from agentloop.store.archive import Archive
from agentloop.store.query import Query

FOLDER = folder("oprl")


# --- step rewards -------------------------------------------------------------------------------


LOG_PROBS = st.tuples(st.floats(-9, 0), st.floats(-9, 0))


@settings(deadline=None)
@given(steps=st.lists(st.lists(LOG_PROBS, min_size=1, max_size=5), min_size=1, max_size=5))
def test_step_rewards_add_up_to_the_log_ratio(
    parts: ModuleType, steps: list[list[tuple[float, float]]]
) -> None:
    segments: list[Segment] = []
    logp: list[float] = []
    for number, step in enumerate(steps):
        segments.append(Segment(ids=(7, 8), attempt=1))
        segments.append(
            Segment(ids=tuple(range(len(step))), attempt=1, node=2 * number + 1,
                    logprobs=tuple(old for _, old in step))
        )  # fmt: skip
        logp += [-1.0, -2.0, *(new for new, _ in step)]
    found = parts.by_step(segments, logp, 0.05)
    assert list(found) == [2 * number + 1 for number in range(len(steps))]
    whole = sum(new - old for step in steps for new, old in step)
    assert sum(found.values()) == pytest.approx(0.05 * whole, abs=1e-9)
    same = [value for each in segments for value in (each.logprobs or (-1.0, -2.0))]
    assert not any(parts.by_step(segments, same, 0.05).values())


def stepped(name: str, right: bool, steps: tuple[float, ...], task: str = "t") -> Episode:
    nodes = [Node(parent=None, message=Message(role="user", content="go"), token_ids=(1, 2))]
    for at in range(len(steps)):
        nodes.append(
            Node(parent=len(nodes) - 1, message=Message(role="assistant", content=f"step {at}"),
                 token_ids=(3, 4), logprobs=(-0.5, -0.25), sampled=True)
        )  # fmt: skip
    return Episode(
        id=name, task=Task(id=task, prompt="p"), bundle="b", purpose="collect", run="r", seed=0,
        trajectories=(Trajectory(nodes=tuple(nodes)),),
        score=Score(value=float(right), success=right, source="s", steps=steps),
    )  # fmt: skip


def test_a_second_model_that_is_the_policy_leaves_the_episode_s_advantage() -> None:
    group = [stepped("a", True, (0.0,) * 3), stepped("b", False, (0.0,) * 2)]
    assert StepCredit().assign(group) == GroupCredit(baseline="mean_std").assign(group)


def test_every_step_of_the_group_is_in_the_baseline() -> None:
    group = [stepped("a", True, (0.0, 3.0)), stepped("b", False, (0.0,))]
    found = StepCredit(baseline="mean").assign(group)
    assert [found["a", 0, 1], found["a", 0, 2], found["b", 0, 1]] == [-0.5, 2.5, -1.5]
    later = [stepped("a", True, (0.0, 9.0)), stepped("b", False, (0.0,))]
    assert StepCredit(baseline="mean").assign(later)["b", 0, 1] == -3.5


def test_pairs_are_within_a_task_and_need_both_kinds(parts: ModuleType) -> None:
    right, wrong = stepped("a", True, (0.2, 0.2)), stepped("b", False, (0.1,))
    assert parts.pair_accuracy([right, wrong]) == (1.0, 1)
    other = stepped("c", False, (0.9,), task="other")
    assert parts.pair_accuracy([right, wrong, other]) == (1.0, 1)
    assert parts.pair_accuracy([right, other]) == (0.5, 0)
    # The mean over steps, not the sum: a long rollout is not better for its length.
    long = stepped("d", False, (0.15,) * 4)
    assert parts.pair_accuracy([right, long]) == (1.0, 1)


def test_a_server_s_log_probs_become_step_rewards(parts: ModuleType) -> None:
    """Asked for the tokens of a whole rollout, answered as the embedded server does."""
    asked: list[dict[str, Any]] = []
    wrong = {"status": 200}

    async def completions(request: web.Request) -> web.Response:
        asked.append({**await request.json(), "key": request.headers["Authorization"]})
        values = [None, *[-0.1] * (len(asked[-1]["prompt"]) - 1)]
        body = {"choices": [{"prompt_logprobs": values}]}
        return web.json_response(body, status=wrong["status"])

    async def drive() -> Any:
        app = web.Application()
        app.router.add_post("/v1/completions", completions)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        [(host, port)] = [address[:2] for address in runner.addresses]
        endpoint = Endpoint(base_url=f"http://{host}:{port}/v1", token="key", model="m")
        one = stepped("a", True, (0.0, 0.0))
        try:
            found = await parts.step_rewards([one], endpoint, "judge", 0.05)
            wrong["status"] = 400
            with pytest.raises(ServerError, match="refused"):
                await parts.step_rewards([one], endpoint, "judge", 0.05)
        finally:
            await runner.cleanup()
        return found

    found = asyncio.run(drive())
    assert asked[0]["prompt"] == [1, 2, 3, 4, 3, 4] and asked[0]["model"] == "judge"
    assert asked[0]["key"] == "Bearer key" and asked[0]["max_tokens"] == 0
    assert found == {("a", 0, at): pytest.approx(0.05 * (-0.2 + 0.75)) for at in (1, 2)}


# --- the toy experiment -------------------------------------------------------------------------


BARS = bars("oprl")


def test_the_bars_are_the_source_s() -> None:
    assert BARS["oprl_minus_rloo"] == 0.03
    assert BARS["oprl.accuracy"] == 0.75 and BARS["oprl.contrast"] == 2.0


def fitted(measures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], float]:
    """How well the shipped judge orders the pairs of one fixed batch while it is fitted to it (the
    first before), and how far its parameters went. The policy is half-way: about three in five
    decisive actions are right."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(measures, "WORLDS", 1)
    world = measures.KeySteps(3)
    policy = world.policy(1.0, 0)
    rows = torch.arange(len(world.keys))[:, None] * measures.STEPS + world.keys
    for _ in range(200):
        logp = policy.at(rows).log_softmax(-1).gather(-1, world.right[..., None])
        if float(logp.detach().exp().mean()) > 0.6:
            break
        policy.step(-0.01 * logp.sum())
    drawn = policy.sample(world.starts, measures.STEPS)
    good = world.hits(drawn.tokens).all(dim=1)
    apart = torch.tensor([[a == b for b in world.names] for a in world.names])
    pairs = (good[:, None] & ~good[None, :] & apart).nonzero()
    judge = measures.Judge(world, world.policy(measures.JUDGE_RATE, 0))
    judge.model.restore(policy.snapshot())
    before = judge.model.snapshot()["table"]
    found: list[float] = []
    for _ in range(8):
        scores = judge.rewards(drawn).detach().mean(dim=1)
        found.append(float((scores[pairs[:, 0]] > scores[pairs[:, 1]] + 1e-6).double().mean()))
        judge.fit(drawn, good.tolist())
    return found, float((judge.model.snapshot()["table"] - before).abs().sum())


def test_a_fit_changes_the_model_and_orders_the_pairs(
    measures: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, moved = fitted(measures, monkeypatch)
    assert moved > 0 and order[0] == 0.0, "a copy of the policy knows nothing"
    assert order[-1] > 0.9


def test_it_fails_when_nothing_reaches_the_model_or_its_sign_is_flipped(
    measures: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from agentloop.training import losses

    true = losses.pair_logistic
    with monkeypatch.context() as patch:
        patch.setattr(losses, "pair_logistic", lambda good, bad: true(bad, good))
        assert fitted(measures, patch)[0][-1] < 0.1
    shipped = losses.implicit_rewards
    with monkeypatch.context() as patch:
        patch.setattr(losses, "implicit_rewards",
                      lambda *given: shipped(*given).detach().requires_grad_())  # fmt: skip
        order, moved = fitted(measures, patch)
        assert moved == 0 and order[-1] == 0.0


@pytest.mark.slow
def test_the_policy_learns_and_not_from_a_second_model_that_learned_the_reverse(
    measures: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from agentloop.training import losses

    monkeypatch.setattr(measures, "WORLDS", 2)
    with_steps = measures.learned(measures.ARMS["oprl"], 2.0, 5)["auc"]
    true = losses.pair_logistic
    monkeypatch.setattr(losses, "pair_logistic", lambda good, bad: true(bad, good))
    assert measures.learned(measures.ARMS["oprl"], 2.0, 5)["auc"] < with_steps - 0.1


# --- a cycle --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("report")
def test_a_scripted_cycle_fits_scores_and_trains(tmp_path: Path, parts: ModuleType) -> None:
    with Archive(tmp_path) as archive:
        [entry] = list(archive.read(Query(kinds=(parts.EVENT,))))
        assert entry.body["rows"] > 0 and entry.body["model"]  # type: ignore[index,call-overload]
        assert entry.body["alpha"] == 0.0, "equal models order no pair"  # type: ignore[index,call-overload]
        collected = archive.episodes(Query(purpose="collect"))
        for one in collected:
            assert one.score is not None
            heat = parts.step_heat(one)
            assert len(heat) == len(one.score.steps) > 1 and heat[0][0].count("=") == 1
        assert replace(collected[0], score=None).trajectories
