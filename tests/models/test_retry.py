"""Retries: which, how often, how long, and that each is counted."""

from __future__ import annotations

import asyncio
import time

import pytest

from agentloop.errors import ModelError
from agentloop.models.retry import RETRY_AFTER_CAP, Retrying
from agentloop.models.scripted import Scripted
from agentloop.records import Message, Request

REQUEST = Request(messages=(Message(role="user", content="hi"),))
AGAIN = {"retryable": True}


def failing(times: int, **how: object) -> Scripted:
    """Fails that often, then says ok."""
    left = [times]

    def reply(request: Request) -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise ModelError("busy", **how)  # type: ignore[arg-type]
        return "ok"

    return Scripted(reply)


def test_tries_again_until_it_works_and_counts_every_attempt() -> None:
    inner = failing(2, **AGAIN)
    model = Retrying(inner, base=0.001)
    done = asyncio.run(model.complete(REQUEST))
    assert (done.message.content, done.usage.calls, inner.calls) == ("ok", 3, 3)


def test_gives_the_last_error_after_the_last_attempt() -> None:
    inner = failing(9, **AGAIN)
    with pytest.raises(ModelError, match="busy") as caught:
        asyncio.run(Retrying(inner, attempts=3, base=0.001).complete(REQUEST))
    assert (caught.value.calls, inner.calls) == (3, 3)


def test_never_repeats_what_cannot_help() -> None:
    inner = failing(1, retryable=False)
    with pytest.raises(ModelError) as caught:
        asyncio.run(Retrying(inner, base=0.001).complete(REQUEST))
    assert (caught.value.calls, inner.calls) == (1, 1)


def waits(monkeypatch: pytest.MonkeyPatch, times: int, seed: int, **how: object) -> list[float]:
    """How long it would have slept between attempts."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    model = Retrying(failing(times, **how), attempts=times + 1, base=0.5, cap=2.0, seed=seed)
    asyncio.run(model.complete(REQUEST))
    return slept


def test_waits_grow_to_a_cap_with_seeded_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = waits(monkeypatch, 6, 1, **AGAIN)
    limits = [0.5, 1.0, 2.0, 2.0, 2.0, 2.0]
    assert len(slept) == 6
    assert all(0 <= got <= limit for got, limit in zip(slept, limits, strict=True))
    assert slept == waits(monkeypatch, 6, 1, **AGAIN) != waits(monkeypatch, 6, 2, **AGAIN)


@pytest.mark.parametrize(("said", "waited"), [(3.0, 3.0), (1e9, RETRY_AFTER_CAP)])
def test_waits_what_the_endpoint_said_but_not_absurdly_long(
    monkeypatch: pytest.MonkeyPatch, said: float, waited: float
) -> None:
    assert waits(monkeypatch, 1, 0, retry_after=said, **AGAIN) == [waited]


def test_an_endpoint_that_asks_for_no_wait_is_not_asked_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept = waits(monkeypatch, 6, 1, retry_after=0.0, **AGAIN)
    assert slept == waits(monkeypatch, 6, 1, **AGAIN) and sum(slept) > 1


def test_one_deadline_for_all_attempts() -> None:
    inner = failing(9, retry_after=30.0, **AGAIN)
    started = time.monotonic()
    with pytest.raises(ModelError) as caught:
        asyncio.run(Retrying(inner, deadline=0.2).complete(REQUEST))
    assert time.monotonic() - started < 2
    error = caught.value
    assert (error.reason, error.retryable, error.calls) == ("model_timeout", False, 1)
