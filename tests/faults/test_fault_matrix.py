"""Every fault of an API, on every transport, wherever in a run it strikes: success after another
attempt or one typed error, in time, and each attempt in the ledger as the server counted it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import certifi
import openai  # noqa: F401  (here, since its seconds are no call's)
import pytest
from fault_cases import FAULTS, Fault
from fault_server import FaultServer, Play, fine

from agentloop.errors import ModelError
from agentloop.models.chain import chain
from agentloop.models.connect import Connected
from agentloop.models.litellm import LiteLLM
from agentloop.models.meter import Meter
from agentloop.models.openai import OpenAIProvider
from agentloop.models.openai_compatible import OpenAICompatible
from agentloop.models.retry import Retrying
from agentloop.records import Completion, Message, Request, Sampling

KEY = "sk-test-0123456789"
ATTEMPTS = 3
REQUEST = Request(
    messages=(Message(role="user", content="hi"),), sampling=Sampling(max_tokens=8, seed=1)
)
Make = Callable[[str, float], Connected]


def _compatible(base_url: str, timeout: float) -> Connected:
    return OpenAICompatible(base_url, KEY, model="fake", timeout=timeout)


def _sdk(base_url: str, timeout: float) -> Connected:
    return OpenAIProvider("fake", api_key=KEY, base_url=base_url, timeout=timeout)


def _litellm(base_url: str, timeout: float) -> Connected:
    return LiteLLM("openai/fake", api_key=KEY, base_url=base_url, timeout=timeout)


@dataclass
class Run:
    """What became of a scenario."""

    done: list[Completion] = field(default_factory=list)
    errors: list[ModelError] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)
    calls: int = 0
    keys: set[str] = field(default_factory=set)
    seconds: float = 0.0


# Where the fault strikes: which of the server's answers it is, and how many calls are made.
POSITIONS: dict[str, tuple[Callable[[int], bool], int]] = {
    "first": (lambda number: number == 0, 1),
    "mid-run": (lambda number: number == 2, 4),
    "forever": (lambda number: True, 1),
    "together": (lambda number: number == 1, 4),
}


async def play(fault: Fault, make: Make, position: str, deadline: float) -> Run:
    strikes, calls = POSITIONS[position]

    def script(number: int) -> Play:
        return fault.play if strikes(number) else fine

    run = Run()
    async with FaultServer(script) as server:
        transport = make(server.base_url, 0.25 if fault.slow else deadline)
        model = chain(transport, run.meter, attempts=ATTEMPTS, deadline=deadline)
        assert isinstance(model, Retrying)
        model._base = 0.001

        async def call() -> None:
            try:
                run.done.append(await model.complete(REQUEST))
            except ModelError as error:
                run.errors.append(error)

        started = time.monotonic()
        try:
            if position == "together":
                await asyncio.gather(*(call() for _ in range(calls)))
            else:
                for _ in range(calls):
                    await call()
        finally:
            run.seconds = time.monotonic() - started
            await transport.close()
        run.calls, run.keys = server.calls, set(server.keys)
    return run


def check_books(run: Run, calls: int) -> None:
    """The ledger is what the server counted, and so are the calls of each result."""
    assert len(run.done) + len(run.errors) == calls
    assert run.meter.total.calls == run.calls
    told = sum(one.usage.calls for one in run.done) + sum(one.calls for one in run.errors)
    assert told == run.calls
    assert run.keys == {f"Bearer {KEY}"}
    assert all(KEY not in str(error) for error in run.errors)


def tokens(run: Run, billed: int) -> tuple[int, int]:
    """Of the replies, and with those of the answers that were refused, `billed` each."""
    taken = sum(one.usage.tokens for one in run.done)
    return taken, taken + billed * (run.calls - len(run.done))


@pytest.fixture(autouse=True, scope="module")
def _one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """httpx reads 150 certificates into each new client, 40 ms, for connections without TLS."""
    whole = Path(certifi.where()).read_text(encoding="utf-8")
    end = "-----END CERTIFICATE-----\n"
    one = tmp_path_factory.mktemp("tls") / "one.pem"
    one.write_text(whole[whole.index("-----BEGIN") : whole.index(end)] + end, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(one))
        yield


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("make", [_compatible, _sdk], ids=["openai_compatible", "openai"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault(fault: Fault, make: Make, position: str) -> None:
    if fault.slow and position in ("mid-run", "together"):
        pytest.skip("as `first`, and it would take as long again")
    deadline = 5.0
    calls = POSITIONS[position][1]
    run = asyncio.run(play(fault, make, position, deadline))
    check_books(run, calls)
    assert run.meter.total.tokens == tokens(run, fault.billed)[1]
    assert run.seconds < deadline + 1
    forever = position == "forever"
    if fault.ending == "again" and not forever:
        assert not run.errors and run.calls == calls + 1
        assert run.meter.total.tokens == 10 * calls + fault.billed
    elif fault.ending == "taken":
        assert not run.errors and run.calls == calls
        odd = [one for one in run.done if fault.seen(one)]
        assert odd and run.meter.total.tokens == 10 * (calls - 1) + fault.tokens
    else:
        [error] = run.errors
        attempts = ATTEMPTS if fault.ending == "again" else 1
        assert (error.reason, error.calls) == (fault.reason, attempts)
        assert error.retryable is (fault.ending == "again")


@pytest.mark.integration
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_through_litellm(fault: Fault, position: str) -> None:
    """litellm reads some odd replies in its own way; the books and the clock are the same."""
    calls = POSITIONS[position][1]
    asyncio.run(_warm())  # its import takes seconds, which are no call's
    run = asyncio.run(play(fault, _litellm, position, 5.0))
    check_books(run, calls)
    taken, paid = tokens(run, fault.billed)
    assert taken <= run.meter.total.tokens <= paid
    if run.meter.total.tokens < paid:  # it kept the answer to itself
        assert run.meter.unconfirmed.calls
    assert run.seconds < 5.0 + 1
    assert run.calls <= calls - 1 + ATTEMPTS
    if fault.ending == "never" and fault.name[0] == "4":  # the error statuses
        [error] = run.errors
        assert (error.reason, error.calls) == (fault.reason, 1)


async def _warm() -> None:
    async with FaultServer(lambda number: fine) as server:
        model = _litellm(server.base_url, 30.0)
        await model.complete(REQUEST)
        await model.close()
