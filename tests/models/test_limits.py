"""How fast an endpoint is called: never more in any minute, never more at once, in order."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import ModelError
from agentloop.models.deadline import deadline, off_the_clock
from agentloop.models.limits import WINDOW, Limited, Rate, Window, most_tokens
from agentloop.models.retry import RETRY_AFTER_CAP, Retrying
from agentloop.models.scripted import Scripted
from agentloop.records import Completion, Message, Request, Sampling, ToolSpec

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


def test_a_window_is_not_an_average(monkeypatch: pytest.MonkeyPatch) -> None:
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


@given(text=st.text(max_size=50), tools=st.booleans())
def test_a_request_never_has_more_tokens_than_thought(text: str, tools: bool) -> None:
    spec = ToolSpec(name="f", description=text, parameters={"type": "object"})
    request = Request(
        messages=(Message(role="user", content=text),), tools=(spec,) if tools else ()
    )
    assert most_tokens(request)[0] >= len(text.encode("utf-8", "replace"))


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


def test_a_queue_of_our_own_is_not_the_endpoint_s_slowness() -> None:
    """0.15 s in a queue do not use up a deadline of 0.1 s, and the rest of it still holds."""

    async def scenario() -> float:
        async with deadline(0.1) as clock:
            with off_the_clock():
                await asyncio.sleep(0.15)
            left = clock.left()
            await asyncio.sleep(30)
        return left

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(scenario(), 20))

    class Slow:
        async def complete(self, request: Request) -> Completion:
            await asyncio.sleep(0.05)
            return await Scripted(["ok"]).complete(request)

    async def queue() -> list[Completion]:
        model = Retrying(Limited(Slow(), Rate(in_flight=1)), deadline=1.0)
        return await asyncio.gather(*(model.complete(REQUEST) for _ in range(30)))

    assert len(asyncio.run(queue())) == 30  # 1.5 s in all
