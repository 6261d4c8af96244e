"""How fast an endpoint is called: never more in any minute, never more at once, in order."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.deadline import deadline, off_the_clock
from agentloop.errors import ModelError
from agentloop.models.limits import WINDOW, Limited, Rate, Window, most_tokens
from agentloop.models.retry import RETRY_AFTER_CAP, Retrying
from agentloop.models.scripted import Scripted
from agentloop.records import Completion, Message, Request, Sampling, ToolCall, ToolSpec, Usage

REQUEST = Request(messages=(Message(role="user", content="hi"),))


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, real = 0.0, asyncio.sleep

        async def sleep(seconds: float) -> None:
            self.now += seconds
            await real(0)

        monkeypatch.setattr(asyncio, "sleep", sleep)

    def __call__(self) -> float:
        return self.now


@given(
    limit=st.integers(1, 50),
    asked=st.lists(st.tuples(st.integers(0, 80), st.floats(0, 40)), max_size=60),
)
def test_no_minute_holds_more_than_the_limit(limit: int, asked: list[tuple[int, float]]) -> None:
    now = 0.0
    window = Window(limit, lambda: now)
    taken: list[tuple[float, float]] = []
    for units, pause in asked:
        now += pause
        wait = window.wait(units)
        assert 0 <= wait <= WINDOW + 1e-9
        now += wait
        assert window.wait(units) <= 1e-6  # what it said was enough
        now += 1e-6
        taken.append((now, window.take(units)[1]))
        assert sum(n for when, n in taken if when > now - WINDOW) <= limit


def test_a_window_is_not_an_average() -> None:
    """An average would let ten through after half a minute's rest; a window counts them all."""
    now = 0.0
    window = Window(10, lambda: now)
    for _ in range(10):
        assert window.wait(1) == 0.0
        window.take(1)
    now = 30.0
    assert window.wait(1) == 30.0


def test_calls_of_a_minute_then_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    times: list[float] = []

    def reply(request: Request) -> str:
        times.append(clock.now)
        return "ok"

    async def scenario() -> None:
        model = Limited(Scripted(reply), Rate(requests_per_minute=3, clock=clock))
        await asyncio.gather(*(model.complete(REQUEST) for _ in range(7)))

    asyncio.run(scenario())
    assert times == [0.0] * 3 + [60.0] * 3 + [120.0]


def test_tokens_count_as_asked_until_the_reply_says(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    request = Request(messages=REQUEST.messages, sampling=Sampling(max_tokens=60))
    most = sum(most_tokens(request))
    inner = Scripted(lambda request: "one two")

    async def scenario(calls: int) -> float:
        model = Limited(inner, Rate(tokens_per_minute=most + 6, clock=clock))
        for _ in range(calls):
            await model.complete(request)
        return clock.now

    # Each reply used 3 tokens of the `most` that were set aside: three fit into a minute.
    assert asyncio.run(scenario(3)) == 0.0
    assert asyncio.run(scenario(4)) == pytest.approx(60.0)


def test_a_reply_without_counts_keeps_what_was_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    silent = Completion(
        message=Message(role="assistant", content="ok"), finish_reason="stop", model="m",
        usage=Usage(calls=1),
    )  # fmt: skip

    async def scenario() -> None:
        limit = sum(most_tokens(REQUEST)) + 6
        model = Limited(Scripted([silent] * 2), Rate(tokens_per_minute=limit, clock=clock))
        await model.complete(REQUEST)
        await model.complete(REQUEST)

    asyncio.run(scenario())
    assert clock.now == pytest.approx(60.0)


@given(text=st.text(max_size=50), spec=st.text(max_size=50), argument=st.text(max_size=50))
def test_a_request_never_has_more_tokens_than_thought(text: str, spec: str, argument: str) -> None:
    tool = ToolSpec(name="f", description=spec, parameters={"description": spec})
    call = ToolCall(id="1", name="f", arguments={"a": argument})
    said = Message(role="assistant", content="", tool_calls=(call,))
    request = Request(messages=(Message(role="user", content=text), said), tools=(tool,))
    sizes = [len(one.encode("utf-8", "replace")) for one in (text, spec, spec, argument)]
    assert most_tokens(request)[0] >= sum(sizes)


def test_no_more_than_so_many_at_once() -> None:
    running, most = 0, 0

    class Slow:
        async def complete(self, request: Request) -> Completion:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.005)
            running -= 1
            return await Scripted(["ok"]).complete(request)

    async def scenario() -> None:
        model = Limited(Slow(), Rate(in_flight=3))
        calls = [asyncio.ensure_future(model.complete(REQUEST)) for _ in range(12)]
        await asyncio.sleep(0.002)
        calls[5].cancel()  # one that gives up leaves its place
        await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(scenario())
    assert (running, most) == (0, 3)


def test_what_one_call_is_told_holds_back_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    times: list[float] = []

    def reply(request: Request) -> str:
        times.append(clock.now)
        if len(times) == 1:
            raise ModelError("slow down", retryable=True, retry_after=1e9)
        return "ok"

    async def scenario() -> None:
        model = Limited(Scripted(reply), Rate(clock=clock))
        with pytest.raises(ModelError):
            await model.complete(REQUEST)
        await model.complete(REQUEST)

    asyncio.run(scenario())
    assert times == [0.0, RETRY_AFTER_CAP]


class Busy:
    """Its first call takes `seconds`, and is told to come back in `again` seconds."""

    def __init__(self, clock: Clock, seconds: float, again: float) -> None:
        self._clock, self._seconds, self._again = clock, seconds, again
        self.times: list[float] = []

    async def complete(self, request: Request) -> Completion:
        self.times.append(self._clock.now)
        if len(self.times) == 1:
            await asyncio.sleep(self._seconds)
            raise ModelError("slow down", retryable=True, retry_after=self._again)
        return await Scripted(["ok"]).complete(request)


@pytest.mark.parametrize(
    ("limits", "seconds", "again"),
    [({"in_flight": 1}, 0, 30), ({"requests_per_minute": 1}, 30, 60)],
    ids=["for a place", "for a minute"],
)
def test_calls_that_are_queued_already_are_held_back_too(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], seconds: float, again: float
) -> None:
    clock = Clock(monkeypatch)
    busy = Busy(clock, seconds, again)

    async def scenario() -> None:
        model = Limited(busy, Rate(clock=clock, **limits))
        calls = (model.complete(REQUEST) for _ in range(2))
        await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(scenario())
    assert busy.times[0] == 0.0 and busy.times[1] >= seconds + again


def test_a_hold_that_outlasts_the_deadline_is_not_waited_for() -> None:
    inner = Scripted(lambda request: "ok")

    async def scenario() -> ModelError:
        rate = Rate()
        rate.hold(30.0)
        with pytest.raises(ModelError) as caught:
            await Retrying(Limited(inner, rate), deadline=2.0).complete(REQUEST)
        return caught.value

    started = time.monotonic()
    error = asyncio.run(scenario())
    assert time.monotonic() - started < 1
    assert (error.reason, error.retryable) == ("model_timeout", False)
    assert error.calls == inner.calls == 0  # what was never asked is not counted


def test_a_queue_of_our_own_is_not_the_endpoint_s_slowness() -> None:
    """0.15 s in a queue do not use up a deadline of 0.1 s, and the rest of it still holds."""

    async def scenario() -> float:
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            async with deadline(0.1):
                with off_the_clock():
                    await asyncio.sleep(0.15)
                await asyncio.sleep(30)
        return time.monotonic() - started

    assert 0.2 < asyncio.run(scenario()) < 5

    class Slow:
        async def complete(self, request: Request) -> Completion:
            await asyncio.sleep(0.05)
            return await Scripted(["ok"]).complete(request)

    async def queue() -> list[Completion]:
        model = Retrying(Limited(Slow(), Rate(in_flight=1)), deadline=1.0)
        return await asyncio.gather(*(model.complete(REQUEST) for _ in range(30)))

    assert len(asyncio.run(queue())) == 30  # 1.5 s in all
