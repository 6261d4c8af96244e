"""The ledger: what is charged, and that the limit stops the call before it is made."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agentloop.errors import BudgetReached, ModelError
from agentloop.models import faults
from agentloop.models.meter import FREE, Meter, Metered
from agentloop.models.retry import Retrying
from agentloop.models.scripted import Scripted
from agentloop.records import Budget, Completion, Message, Request, Sampling, Usage

REQUEST = Request(messages=(Message(role="user", content="one two three"),))


def ask(meter: Meter, inner: Scripted, request: Request = REQUEST) -> Completion:
    return asyncio.run(Metered(inner, meter).complete(request))


def test_adds_up_in_all_and_per_policy_or_model() -> None:
    meter, inner = Meter(), Scripted(lambda request: "four five")
    ask(meter, inner)
    ask(meter, inner, replace(REQUEST, policy="adapter"))
    assert meter.total == Usage(prompt_tokens=6, completion_tokens=4, calls=2, unpriced=2)
    assert {name: usage.tokens for name, usage in meter.by_model.items()} == {
        "scripted": 5, "adapter": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    "budget", [Budget(tokens=8), Budget(usd=8e-6), Budget(seconds=8)], ids=["tokens", "usd", "s"]
)
def test_stops_before_the_call_that_would_pass_the_limit(budget: Budget) -> None:
    now = [0.0]

    def reply(request: Request) -> str:
        now[0] += 5
        return "four five"

    inner = Scripted(reply)
    meter = Meter(budget, {"*": (1.0, 1.0)}, clock=lambda: now[0])
    ask(meter, inner)
    ask(meter, inner)
    with pytest.raises(BudgetReached):
        ask(meter, inner)
    assert inner.calls == 2


def test_price_of_a_dated_snapshot_is_that_of_its_model() -> None:
    meter = Meter(prices={"big": (2.0, 10.0)})
    done = ask(meter, Scripted(["four five"], model="big-2026-01-31"))
    assert done.usage.usd == meter.total.usd == pytest.approx((3 * 2 + 2 * 10) / 1e6)
    assert meter.priced
    assert meter.estimate(100, 1000, 100, model="big") == pytest.approx(100 * 3000 / 1e6)


def test_an_unknown_price_is_said() -> None:
    meter = Meter(prices={"big": (2.0, 10.0)})
    ask(meter, Scripted(["x"], model="big-mini"))
    assert not meter.priced and meter.total.usd == 0
    assert meter.estimate(1, 1, 1, model="big-mini") is None


def test_a_local_model_is_free_and_known_to_be() -> None:
    meter = Meter(prices=FREE)
    ask(meter, Scripted(["x"]))
    assert meter.priced and meter.total.usd == 0


def test_the_provider_s_own_cost_goes_before_the_table() -> None:
    meter = Meter(prices={"*": (1.0, 1.0)})
    reply = Completion(
        message=Message(role="assistant", content=""), finish_reason="stop", model="m",
        usage=Usage(prompt_tokens=9, usd=0.5, calls=1),
    )  # fmt: skip
    assert ask(meter, Scripted([reply])).usage.usd == meter.total.usd == 0.5


def test_failed_attempts_are_counted() -> None:
    def reply(request: Request) -> str:
        raise ModelError("busy", retryable=True)

    inner, meter = Scripted(reply), Meter()
    with pytest.raises(ModelError):
        asyncio.run(Metered(Retrying(inner, attempts=3, base=0.0), meter).complete(REQUEST))
    assert meter.total.calls == meter.failed_calls == inner.calls == 3
    assert meter.by_model == {}


def test_a_cancelled_call_is_counted() -> None:
    class Hang:
        async def complete(self, request: Request) -> Completion:
            await asyncio.sleep(30)
            raise AssertionError

    async def scenario(meter: Meter) -> None:
        async with asyncio.timeout(0.05):
            await Metered(Hang(), meter).complete(REQUEST)

    meter = Meter()
    with pytest.raises(TimeoutError):
        asyncio.run(scenario(meter))
    assert (meter.total.calls, meter.failed_calls) == (1, 1)


class Echo:
    """Takes a moment, and gives as many tokens as were asked for."""

    def __init__(self) -> None:
        self.running = self.most = self.calls = 0

    async def complete(self, request: Request) -> Completion:
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.002)
        finally:
            self.running -= 1
        usage = Usage(prompt_tokens=4, completion_tokens=request.sampling.max_tokens, calls=1)
        return Completion(
            message=Message(role="assistant", content=""), finish_reason="length", usage=usage,
            model="m",
        )  # fmt: skip


@pytest.mark.parametrize(
    "budget", [Budget(tokens=1000), Budget(usd=1000e-6)], ids=["tokens", "usd"]
)
def test_calls_in_flight_together_pass_no_limit(budget: Budget) -> None:
    """64 at once, each of 54 tokens and at most 69: without what is set aside all would start."""
    meter, inner = Meter(budget, {"*": (1.0, 1.0)}), Echo()
    request = replace(REQUEST, sampling=Sampling(max_tokens=50))
    model = Metered(inner, meter)

    async def scenario() -> list[Completion | BaseException]:
        calls = (model.complete(request) for _ in range(64))
        return await asyncio.gather(*calls, return_exceptions=True)

    ended = asyncio.run(scenario())
    assert {type(one) for one in ended} == {Completion, BudgetReached}
    assert 900 < meter.total.tokens <= 1000 + 54  # only a call that is alone may pass it
    assert inner.calls == meter.total.calls == sum(isinstance(o, Completion) for o in ended)
    assert inner.most > 5  # they did run together


def test_one_that_gives_up_waiting_takes_nothing_with_it() -> None:
    meter, inner = Meter(Budget(tokens=400)), Echo()
    request = replace(REQUEST, sampling=Sampling(max_tokens=200))

    async def scenario() -> None:
        calls = [asyncio.ensure_future(Metered(inner, meter).complete(request)) for _ in range(3)]
        await asyncio.sleep(0)
        calls[1].cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(scenario())
    assert (meter.total.calls, meter.failed_calls, inner.calls) == (2, 0, 2)


def test_dollars_cannot_be_limited_without_a_price() -> None:
    meter, inner = Meter(Budget(usd=1.0), {"big": (1.0, 1.0)}), Scripted(lambda request: "x")
    ask(meter, inner)
    with pytest.raises(BudgetReached, match="no known price; add `prices`"):
        ask(meter, inner)
    assert (inner.calls, meter.total.unpriced) == (1, 1)


def test_a_run_taken_up_again_knows_what_it_has_spent() -> None:
    meter = Meter(Budget(tokens=10), spent=Usage(prompt_tokens=10, calls=1))
    with pytest.raises(BudgetReached, match="10 tokens"):
        ask(meter, Scripted(["x"]))


def test_a_reply_under_another_name_has_the_price_of_the_model_that_was_asked() -> None:
    meter = Meter(Budget(usd=1.0), {"vendor/big": (2.0, 10.0), "small": (1.0, 1.0)})
    for answered, usd in (("big", (3 * 2 + 10) / 1e6), ("small", 4 / 1e6)):
        inner = Scripted(["x"], model=answered)
        done = asyncio.run(Metered(inner, meter, model="vendor/big").complete(REQUEST))
        assert done.usage.usd == pytest.approx(usd)
    assert meter.priced


class Told(Echo):
    """Says itself that each call cost an eighth of a dollar."""

    async def complete(self, request: Request) -> Completion:
        done = await super().complete(request)
        return replace(done, usage=replace(done.usage, usd=0.125))


def test_a_cost_that_only_replies_tell_passes_no_limit() -> None:
    meter, inner = Meter(Budget(usd=1.0)), Told()

    async def scenario() -> None:
        calls = (Metered(inner, meter).complete(REQUEST) for _ in range(64))
        await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(scenario())
    assert (meter.total.usd, inner.calls) == (1.0, 8)
    assert inner.most > 5  # all but the first ran together


SILENT = Completion(
    message=Message(role="assistant", content="x"), finish_reason="stop", model="m",
    usage=Usage(calls=1),
)  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "told"),
    [(Budget(tokens=10), "came without token counts"), (Budget(usd=1), "have no known price")],
)
def test_a_budget_that_no_reply_would_use_up_ends_the_run(budget: Budget, told: str) -> None:
    meter, inner = Meter(budget, {"m": (1.0, 1.0)}), Scripted([SILENT] * 2)
    assert ask(meter, inner).usage.unpriced == 1
    with pytest.raises(BudgetReached, match=told):
        ask(meter, inner)
    assert inner.calls == 1


def test_a_reply_without_counts_costs_nothing_where_nothing_does() -> None:
    meter = Meter(prices=FREE)
    ask(meter, Scripted([SILENT]))
    assert (meter.total.unpriced, meter.uncounted) == (0, 1)


def test_an_attempt_that_ends_in_any_other_way_is_counted() -> None:
    def reply(request: Request) -> str:
        raise RuntimeError("a fault of the transport")

    meter = Meter(Budget(tokens=1000))
    with pytest.raises(RuntimeError):
        ask(meter, Scripted(reply))
    assert (meter.total.calls, meter.failed_calls) == (1, 1)


class Stuck:
    """Never answers, or says that it did not in time; then it answers."""

    def __init__(self, error: ModelError | None = None) -> None:
        self.error, self.calls = error, 0

    async def complete(self, request: Request) -> Completion:
        self.calls += 1
        if self.calls > 1:
            return await Scripted(["x"]).complete(request)
        if self.error is not None:
            raise self.error
        await asyncio.sleep(30)
        raise AssertionError


LONG = Request(messages=(Message(role="user", content="word" * 100),))


@pytest.mark.parametrize("error", [None, faults.timed_out("late", 1), faults.oversized("there")])
@pytest.mark.parametrize("budget", [Budget(tokens=90), Budget(usd=90e-6)], ids=["tokens", "usd"])
def test_the_prompt_of_an_attempt_that_was_cut_off_counts_towards_the_budget(
    error: ModelError | None, budget: Budget
) -> None:
    """The prompt's 400 bytes and its frame are about 104 tokens."""
    meter = Meter(budget, {"*": (1.0, 1.0)})
    inner = Stuck(error)
    with pytest.raises(ModelError, match=r"tried once|late|MiB"):
        asyncio.run(Retrying(Metered(inner, meter), deadline=0.05).complete(LONG))
    assert meter.unconfirmed == Usage(calls=1, prompt_tokens=104, usd=pytest.approx(104e-6))
    assert meter.total == Usage(calls=1)
    with pytest.raises(BudgetReached, match=r"\(0 used, and about .*104.* without an answer\)"):
        asyncio.run(Metered(inner, meter).complete(REQUEST))
    assert inner.calls == 1


def test_an_answer_that_is_refused_has_cost_what_it_says() -> None:
    meter = Meter(Budget(tokens=90), {"big": (1e6, 2e6)})
    refused = Stuck(faults.unreadable("there", "no choices", (60, 30)))
    with pytest.raises(ModelError):
        asyncio.run(Metered(refused, meter, model="big").complete(LONG))
    assert meter.total == Usage(prompt_tokens=60, completion_tokens=30, usd=120.0, calls=1)
    assert meter.by_model["big"].usd == 120.0 and meter.unconfirmed == Usage()
    with pytest.raises(BudgetReached, match="90 tokens"):
        asyncio.run(Metered(refused, meter, model="big").complete(LONG))


def test_an_attempt_that_was_refused_is_not_guessed_at() -> None:
    meter = Meter(Budget(tokens=90))
    refused = Stuck(ModelError("refused"))
    with pytest.raises(ModelError):
        asyncio.run(Metered(refused, meter).complete(LONG))
    assert meter.unconfirmed == Usage() and meter.failed_calls == 1


def test_seconds_go_on_from_where_the_run_was() -> None:
    now = [100.0]
    meter = Meter(Budget(seconds=8), seconds=5.0, clock=lambda: now[0])
    ask(meter, Scripted(["x"]))
    now[0] += 3
    assert meter.seconds == 8
    with pytest.raises(BudgetReached, match="8 seconds"):
        ask(meter, Scripted(["x"]))
