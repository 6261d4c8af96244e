"""A rollout whose model does not answer: a fallback is asked in time, and the episode says so."""

from __future__ import annotations

import asyncio
import io
import time

import pytest
from rich.console import Console
from rollout_fixtures import rollouts

from agentloop.cli import show
from agentloop.deadline import Clock, off_the_clock
from agentloop.errors import ModelError
from agentloop.models.chain import chain
from agentloop.models.fallback import Fallbacks
from agentloop.models.meter import Meter
from agentloop.models.scripted import Scripted
from agentloop.ports import Model
from agentloop.records import Completion, Episode, Limits, Message, Request
from agentloop.trajectories.codec import decode, encode

REQUEST = Request(messages=(Message(role="user", content="hi"),))


class Hang:
    """Takes a call and never answers; `queue` is how long it waits for its turn first."""

    def __init__(self, queue: float = 0.0) -> None:
        self.calls, self.queue = 0, queue

    async def complete(self, request: Request) -> Completion:
        self.calls += 1
        with off_the_clock():
            await asyncio.sleep(self.queue)
        await asyncio.sleep(60)
        raise AssertionError


def chained(*models: Model, deadline: float = 60.0) -> Fallbacks:
    meter = Meter()
    return Fallbacks(
        [(f"m{at}" if at else "", chain(one, meter, deadline=deadline))
         for at, one in enumerate(models)]
    )  # fmt: skip


def test_a_model_that_hangs_leaves_time_for_the_next() -> None:
    rollouts(["Answer: 1"])  # so that importing the agent takes none of the time
    first, second = Hang(), Scripted(["Answer: 5"])
    [episode] = rollouts(chained(first, second), limits=Limits(seconds=2.0))
    assert (episode.answer, episode.failure) == ("5", None)
    assert (first.calls, second.calls) == (1, 1)


def asked(model: Model, limit: float) -> tuple[Completion | ModelError, float]:
    """What a call within a rollout of `limit` seconds gives, and after how long."""

    async def scenario() -> tuple[Completion | ModelError, float]:
        clock, started = Clock(limit), time.monotonic()
        with clock.running():
            try:
                done: Completion | ModelError = await model.complete(REQUEST)
            except ModelError as error:
                done = error
        return done, time.monotonic() - started

    return asyncio.run(scenario())


def test_each_model_has_an_equal_share_of_what_is_left() -> None:
    done, seconds = asked(chained(Hang(), Hang(), Scripted(["x"])), 0.9)
    assert isinstance(done, Completion) and done.fallback == "m2"
    assert seconds == pytest.approx(0.6, abs=0.2)


def test_waiting_for_a_turn_takes_nothing_from_a_share() -> None:
    done, seconds = asked(chained(Hang(queue=0.5), Scripted(["x"])), 0.4)
    assert isinstance(done, Completion) and 0.6 < seconds < 1.2


def test_the_last_model_and_a_policy_s_only_one_have_all_the_time() -> None:
    done, seconds = asked(chained(Hang(), Hang(), deadline=0.3), 0.2)
    assert isinstance(done, ModelError) and seconds == pytest.approx(0.4, abs=0.15)
    assert "within 0.1 s" in str(done) and "within 0.3 s" in str(done)
    for_policy = Request(messages=REQUEST.messages, policy="p")
    second = Scripted(["x"])

    async def scenario() -> float:
        started = time.monotonic()
        with Clock(0.1).running(), pytest.raises(ModelError):
            await chained(Hang(), second, deadline=0.3).complete(for_policy)
        return time.monotonic() - started

    assert asyncio.run(scenario()) > 0.25 and second.calls == 0


def test_the_episode_says_which_model_stood_in() -> None:
    def down(request: Request) -> str:
        if len(request.messages) > 2:
            raise ModelError("down")
        return '```add\n{"a": 2, "b": 3}\n```'

    [episode] = rollouts(chained(Scripted(down), Scripted(["Answer: 5"])))
    kept = decode(Episode, encode(episode))
    nodes = kept.trajectories[0].nodes
    assert [node.fallback for node in nodes if node.sampled] == ["", "m1"]
    assert not any(node.fallback for node in nodes if not node.sampled)
    out = io.StringIO()
    Console(file=out, width=80).print(show.trace(kept))
    assert out.getvalue().count("[by m1]") == 1
