"""A finished call is never made or charged again."""

from __future__ import annotations

import asyncio
import gc

import pytest

from agentloop.errors import ModelError, StoreError
from agentloop.models.journal import Journaled
from agentloop.models.meter import Meter, Metered
from agentloop.models.scripted import Scripted
from agentloop.records import Completion, Message, Request


class Memory:
    """A journal in a dict; writing takes a moment, as it does on a disk, or until `go` is set."""

    def __init__(self, *, broken: bool = False, held: bool = False) -> None:
        self.calls: dict[str, Completion] = {}
        self.broken, self.held = broken, held
        self.writing, self.go = asyncio.Event(), asyncio.Event()

    def call(self, key: str) -> Completion | None:
        return self.calls.get(key)

    async def add_call(self, key: str, completion: Completion) -> None:
        self.writing.set()
        await (self.go.wait() if self.held else asyncio.sleep(0.02))
        if self.broken:
            raise StoreError("disk full")
        self.calls[key] = completion


def asked(key: str) -> Request:
    return Request(messages=(Message(role="user", content="hi"),), key=key)


def counted() -> Scripted:
    """Replies with the number of the call."""
    model = Scripted(lambda request: str(model.calls))
    return model


def test_a_known_key_is_answered_without_a_call_or_a_charge() -> None:
    inner, meter, journal = counted(), Meter(), Memory()

    async def scenario() -> None:
        first = await Journaled(Metered(inner, meter), journal).complete(asked("e/0"))
        later = Journaled(Metered(inner, meter), journal)  # another process, the same journal
        assert await later.complete(asked("e/0")) == first
        assert later.replayed == 1

    asyncio.run(scenario())
    assert inner.calls == meter.total.calls == 1


def test_other_keys_and_no_keys_are_calls() -> None:
    inner, journal = counted(), Memory()

    async def scenario() -> None:
        model = Journaled(inner, journal)
        for key in ("a", "b", "", ""):
            await model.complete(asked(key))

    asyncio.run(scenario())
    assert inner.calls == 4 and set(journal.calls) == {"a", "b"}


def test_many_at_once_with_one_key_make_one_call() -> None:
    inner = counted()

    class Slow:
        async def complete(self, request: Request) -> Completion:
            done = await inner.complete(request)
            await asyncio.sleep(0.01)
            return done

    async def scenario() -> list[Completion]:
        model = Journaled(Slow(), Memory())
        return await asyncio.gather(*(model.complete(asked("e/0")) for _ in range(20)))

    assert {done.message.content for done in asyncio.run(scenario())} == {"1"}
    assert inner.calls == 1


def test_an_error_is_not_recorded() -> None:
    def reply(request: Request) -> str:
        if inner.calls == 1:
            raise ModelError("busy")
        return "ok"

    inner, journal = Scripted(reply), Memory()

    async def scenario() -> str:
        model = Journaled(inner, journal)
        with pytest.raises(ModelError):
            await model.complete(asked("e/0"))
        assert not journal.calls
        return (await model.complete(asked("e/0"))).message.content

    assert asyncio.run(scenario()) == "ok"


def test_a_reply_paid_for_is_recorded_though_its_caller_is_cancelled() -> None:
    journal = Memory()

    inner = counted()

    async def scenario() -> None:
        model = Journaled(inner, journal)
        waiting = asyncio.create_task(model.complete(asked("e/0")))
        await journal.writing.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await model.complete(asked("e/0"))).message.content == "1"

    asyncio.run(scenario())
    assert set(journal.calls) == {"e/0"} and inner.calls == 1


def test_a_reply_that_cannot_be_recorded_is_not_given_out() -> None:
    with pytest.raises(StoreError):
        asyncio.run(Journaled(counted(), Memory(broken=True)).complete(asked("e/0")))


def test_closing_waits_for_what_is_being_recorded() -> None:
    journal = Memory(held=True)

    async def scenario() -> None:
        model = Journaled(counted(), journal)
        waiting = asyncio.create_task(model.complete(asked("e/0")))
        await journal.writing.wait()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert not journal.calls
        asyncio.get_running_loop().call_later(0.05, journal.go.set)
        await model.close()
        assert set(journal.calls) == {"e/0"}
        await model.close()

    asyncio.run(scenario())


def test_a_reply_that_could_not_be_kept_is_told_though_its_caller_is_gone() -> None:
    journal, complaints = Memory(broken=True, held=True), []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
        model = Journaled(counted(), journal)
        waiting = asyncio.create_task(model.complete(asked("e/0")))
        await journal.writing.wait()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        journal.go.set()
        await asyncio.sleep(0.01)
        with pytest.raises(StoreError, match="disk full"):
            await model.close()

    asyncio.run(scenario())
    gc.collect()
    assert not complaints
