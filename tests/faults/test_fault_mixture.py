"""Faults that no single answer shows: nobody there, a wait too long, a caller that gives up, and
thousands of calls of which many meet a fault."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
import time
from dataclasses import replace
from typing import NamedTuple

import pytest
from fault_cases import FAULTS, Fault, status
from fault_server import FaultServer, Play, Wire, fine

from agentloop.errors import ModelError
from agentloop.models.chain import chain
from agentloop.models.connect import Connected
from agentloop.models.meter import Meter, Metered
from agentloop.models.openai import OpenAIProvider
from agentloop.models.openai_compatible import OpenAICompatible
from agentloop.models.retry import Retrying
from agentloop.ports import Model
from agentloop.records import Completion, Message, Request, Sampling

REQUEST = Request(
    messages=(Message(role="user", content="hi"),), sampling=Sampling(max_tokens=8, seed=1)
)
AGAIN = [fault for fault in FAULTS if fault.ending == "again" and not fault.slow]
NEVER = [f for f in FAULTS if f.ending == "never" and f.name not in ("gzip-bomb", "mebibytes-40")]
"""Without the two that cost a second each."""


@pytest.fixture(params=[OpenAICompatible, OpenAIProvider], ids=["openai_compatible", "openai"])
def make(request: pytest.FixtureRequest) -> type[Connected]:
    return request.param


def transport(kind: type[Connected], base_url: str, timeout: float = 5.0) -> Connected:
    if kind is OpenAIProvider:
        return OpenAIProvider("fake", api_key="k", base_url=base_url, timeout=timeout)
    return OpenAICompatible(base_url, "k", model="fake", timeout=timeout)


async def failing(model: Model) -> ModelError:
    """The one typed error of a call."""
    with pytest.raises(ModelError) as caught:
        await model.complete(REQUEST)
    return caught.value


def nobody(make: type[Connected], base_url: str) -> tuple[ModelError, Meter]:
    """A call of at most three attempts within 5 s, to a place where no model is."""

    async def scenario() -> tuple[ModelError, Meter]:
        meter = Meter()
        wire = transport(make, base_url)
        error = await failing(Retrying(Metered(wire, meter), attempts=3, base=0.001, deadline=5.0))
        await wire.close()
        return error, meter

    started = time.monotonic()
    error, meter = asyncio.run(scenario())
    assert time.monotonic() - started < 6
    assert error.calls == meter.total.calls == meter.failed_calls
    return error, meter


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_nobody_listens(make: type[Connected], host: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    error, _ = nobody(make, f"http://{host}:{port}/v1")
    assert (error.reason, error.calls) == ("model_error", 3)


def test_a_server_without_tls(make: type[Connected]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            for _ in range(3):
                with contextlib.suppress(OSError), server.accept()[0] as line:
                    line.recv(64)
                    line.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        error, _ = nobody(make, f"https://127.0.0.1:{server.getsockname()[1]}/v1")
    assert (error.reason, error.retryable, error.calls) == ("model_error", False, 1)


@pytest.mark.parametrize("wait", ["1e9", "Fri, 31 Dec 9999 23:59:59 GMT", "30"])
def test_a_wait_that_outlasts_the_deadline_is_not_begun(make: type[Connected], wait: str) -> None:
    busy = status(429, "again", "later", Retry_After=wait)

    async def scenario() -> tuple[ModelError, int, float]:
        async with FaultServer(lambda number: busy.play) as server:
            wire = transport(make, server.base_url)
            started = time.monotonic()
            error = await failing(chain(wire, Meter(), deadline=2.0))
            seconds = time.monotonic() - started
            await wire.close()
            return error, server.calls, seconds

    error, calls, seconds = asyncio.run(scenario())
    assert (error.reason, error.retryable, error.calls, calls) == ("model_timeout", False, 1, 1)
    assert seconds < 1 and "429" in str(error)


def test_every_attempt_of_a_caller_that_gave_up_is_recorded(make: type[Connected]) -> None:
    """Two failed attempts and one in flight are three, whoever lost interest."""

    async def hang(wire: Wire) -> None:
        await wire.hang()

    busy = status(503, "again").play

    async def scenario() -> tuple[Meter, int]:
        meter = Meter()
        async with FaultServer(lambda number: busy if number < 2 else hang) as server:
            wire = transport(make, server.base_url)
            model = Retrying(Metered(wire, meter), base=0.001)
            call = asyncio.ensure_future(model.complete(REQUEST))
            while server.calls < 3:
                await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await wire.close()
            return meter, server.calls

    meter, calls = asyncio.run(scenario())
    assert meter.total.calls == meter.failed_calls == calls == 3


class Soaked(NamedTuple):
    """What came of many calls; `billed` is what the refused answers said they cost, in tokens."""

    done: list[Completion]
    errors: list[ModelError]
    server: FaultServer
    meter: Meter
    billed: int


async def soak(faults: list[Fault], *, calls: int, share: float, attempts: int) -> Soaked:
    """`calls` calls, 64 at a time, of which this share of *attempts* meets a random fault."""
    chance = random.Random(7)
    billed = 0

    def script(number: int) -> Play:
        nonlocal billed
        if chance.random() >= share:
            return fine
        fault = chance.choice(faults)
        billed += fault.billed
        return fault.play

    done: list[Completion] = []
    errors: list[ModelError] = []
    meter, left = Meter(), iter(range(calls))
    async with FaultServer(script) as server:
        wire = transport(OpenAICompatible, server.base_url, 30.0)
        model = Retrying(Metered(wire, meter), attempts=attempts, base=0.001, deadline=60.0)

        async def work() -> None:
            for number in left:
                try:
                    done.append(await model.complete(replace(REQUEST, key=str(number))))
                except ModelError as error:
                    errors.append(error)

        await asyncio.gather(*(work() for _ in range(64)))
        await wire.close()
    return Soaked(done, errors, server, meter, billed)


def check_books(soaked: Soaked) -> None:
    told = sum(one.usage.calls for one in soaked.done) + sum(one.calls for one in soaked.errors)
    assert soaked.server.calls == soaked.meter.total.calls == told
    assert soaked.meter.total.tokens == 10 * len(soaked.done) + soaked.billed


@pytest.mark.parametrize(
    "calls", [500, pytest.param(10_000, marks=[pytest.mark.integration, pytest.mark.timeout(600)])]
)
def test_passing_faults_on_a_third_of_the_attempts(calls: int) -> None:
    soaked = asyncio.run(soak(AGAIN, calls=calls, share=0.3, attempts=8))
    done, errors, server = soaked[:3]
    print(f"\n{len(done)} of {calls} calls complete, {server.calls} attempts", end=" ")
    assert len(done) + len(errors) == calls
    assert len(errors) <= max(1, 0.001 * calls)  # eight faults in a row: 1 call in 15,000
    assert server.calls > 1.2 * calls  # the faults were there
    check_books(soaked)


@pytest.mark.parametrize("calls", [100, pytest.param(1_000, marks=pytest.mark.integration)])
def test_lasting_faults_end_after_one_attempt_each(calls: int) -> None:
    soaked = asyncio.run(soak(NEVER, calls=calls, share=1.0, attempts=8))
    done, errors, server = soaked[:3]
    assert not done and len(errors) == server.calls == calls
    assert all(error.calls == 1 and not error.retryable for error in errors)
    check_books(soaked)
