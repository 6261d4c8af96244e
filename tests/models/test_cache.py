"""The response cache: only for requests that fix their answer, never for another model, free."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agentloop.models.cache import Cached
from agentloop.models.journal import Journaled
from agentloop.models.meter import Meter, Metered
from agentloop.models.scripted import Scripted
from agentloop.records import Completion, Message, Request, Sampling, Usage

GREEDY = Request(messages=(Message(role="user", content="hi"),), key="e/0")
SEEDED = replace(GREEDY, sampling=Sampling(temperature=1.0, seed=3))
PRICES = {"*": (1e6, 1e6)}


class Memory:
    """A journal in a dict."""

    def __init__(self) -> None:
        self.calls: dict[str, Completion] = {}

    def call(self, key: str) -> Completion | None:
        return self.calls.get(key)

    async def add_call(self, key: str, completion: Completion) -> None:
        self.calls[key] = completion


def counted() -> Scripted:
    """Replies with the number of the call."""
    model = Scripted(lambda request: str(model.calls))
    return model


def ask(model: Cached, *requests: Request) -> list[Completion]:
    async def all_at_once() -> list[Completion]:
        return await asyncio.gather(*(model.complete(request) for request in requests))

    return asyncio.run(all_at_once())


@pytest.mark.parametrize("request_", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_the_same_again_is_free_and_marked(request_: Request) -> None:
    inner, meter, kept = counted(), Meter(prices=PRICES), Memory()
    model = Cached(Metered(inner, meter), kept, identity="m")
    first, again, other_key = ask(model, request_, request_, replace(request_, key="e/1"))
    assert inner.calls == meter.total.calls == 1 and meter.total.usd == 2.0
    assert (first.cached, again.cached, other_key.cached) == (False, True, True)
    assert again.message == first.message
    assert again.usage == replace(first.usage, usd=0.0, calls=0)
    assert again.usage.completion_tokens == 1  # a rollout's limits see the same reply


def test_what_asks_for_a_new_sample_gets_one() -> None:
    inner, kept = counted(), Memory()
    hot = replace(GREEDY, sampling=Sampling(temperature=1.0))
    first, second = ask(Cached(inner, kept, identity="m"), hot, hot)
    assert (first.message.content, second.message.content) == ("1", "2")
    assert not kept.calls


@pytest.mark.parametrize(
    "other",
    [
        replace(GREEDY, messages=(Message(role="user", content="hi "),)),
        replace(GREEDY, sampling=Sampling(max_tokens=5)),
        replace(GREEDY, policy="adapter"),
        replace(SEEDED, sampling=Sampling(temperature=1.0, seed=4)),
    ],
)
def test_any_difference_is_another_request(other: Request) -> None:
    inner = counted()
    ask(Cached(inner, Memory(), identity="m"), GREEDY, other)
    assert inner.calls == 2


def test_another_model_s_reply_is_never_given_out() -> None:
    inner, kept = counted(), Memory()
    ask(Cached(inner, kept, identity="a"), GREEDY)
    [reply] = ask(Cached(inner, kept, identity="b"), GREEDY)
    assert inner.calls == 2 and not reply.cached


def test_a_run_s_journal_has_only_what_the_run_paid() -> None:
    """So that a resumed run counts the same dollars: those of cached replies are another's."""
    inner, kept, journal = counted(), Memory(), Memory()
    model = Journaled(Cached(inner, kept, identity="m"), journal)
    asyncio.run(model.complete(GREEDY))
    asyncio.run(model.complete(replace(GREEDY, key="e/1")))
    assert list(journal.calls) == ["e/0"]
    assert sum((one.usage for one in journal.calls.values()), Usage()).calls == inner.calls == 1
