"""Another model when one is down: which one answered is on record, and policies never mix."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agentloop.errors import BudgetReached, ModelError
from agentloop.models.fallback import Fallbacks
from agentloop.models.meter import Meter, Metered
from agentloop.models.retry import Retrying
from agentloop.models.scripted import Scripted
from agentloop.ports import Model
from agentloop.records import Budget, Message, Request

REQUEST = Request(messages=(Message(role="user", content="hi"),))


def down(reason: str = "model_error") -> Scripted:
    def reply(request: Request) -> str:
        raise ModelError("the first is down", reason=reason, retryable=True)

    return Scripted(reply)


def chained(inner: Model, meter: Meter) -> Retrying:
    return Retrying(Metered(inner, meter), attempts=2, base=0.0)


def test_the_first_that_answers_and_its_name() -> None:
    meter, first, second = Meter(), down(), Scripted(["hello"], model="other-2")
    model = Fallbacks(
        [("", chained(first, meter)), ("a", chained(down(), meter)), ("b", chained(second, meter))]
    )
    done = asyncio.run(model.complete(REQUEST))
    assert (done.message.content, done.fallback, done.model) == ("hello", "b", "other-2")
    assert done.usage.calls == meter.total.calls == 5
    assert list(meter.by_model) == ["other-2"]


def test_no_mark_when_the_model_that_was_asked_answers() -> None:
    second = Scripted(["no"])
    done = asyncio.run(Fallbacks([("", Scripted(["x"])), ("b", second)]).complete(REQUEST))
    assert (done.fallback, second.calls) == ("", 0)


def test_when_all_fail_the_first_s_reason_and_every_attempt() -> None:
    meter = Meter()
    first, second = chained(down("model_timeout"), meter), chained(down(), meter)
    with pytest.raises(ModelError, match="fallback `b`") as caught:
        asyncio.run(Fallbacks([("", first), ("b", second)]).complete(REQUEST))
    assert (caught.value.reason, caught.value.calls) == ("model_timeout", 4)
    assert meter.total.calls == meter.failed_calls == 4


def test_a_policy_has_no_stand_in() -> None:
    second = Scripted(["sampled by somebody else"])
    with pytest.raises(ModelError, match="down"):
        asyncio.run(
            Fallbacks([("", down()), ("b", second)]).complete(replace(REQUEST, policy="adapter"))
        )
    assert second.calls == 0


def test_a_spent_budget_is_no_outage() -> None:
    meter, second = Meter(Budget(tokens=1)), Scripted(["x"])
    meter.charge(asyncio.run(Scripted(["a b"]).complete(REQUEST)))
    with pytest.raises(BudgetReached):
        asyncio.run(
            Fallbacks([("", chained(Scripted(["y"]), meter)), ("b", second)]).complete(REQUEST)
        )
    assert second.calls == 0


def test_a_prompt_that_is_too_long_is_no_outage() -> None:
    second = Scripted(["x"])
    with pytest.raises(ModelError) as caught:
        asyncio.run(Fallbacks([("", down("context_overflow")), ("b", second)]).complete(REQUEST))
    assert (caught.value.reason, second.calls) == ("context_overflow", 0)
