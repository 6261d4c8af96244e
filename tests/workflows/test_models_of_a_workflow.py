"""What a workflow says about calls (rate, retries, fallbacks, cache, budget), up to the ledger."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint, Reply, chat

from agentloop.cli.show import dollars
from agentloop.errors import BudgetReached, ModelError, StoreError, UsageError
from agentloop.models.connect import connect, parse
from agentloop.models.meter import Meter
from agentloop.records import Completion, Message, Request, Sampling
from agentloop.store.archive import Archive
from agentloop.workflows.models import ScopedJournal, check_calls, lend_model, prices
from agentloop.workflows.report import Unconfirmed, cost_of
from agentloop.workflows.schema import Workflow, validate

LEAST: dict[str, Any] = {"title": "t", "tasks": "a:B", "reward": "a:C"}
KEY = {"OPENAI_API_KEY": "k"}


def workflow(**keys: Any) -> Workflow:
    return validate({**LEAST, **keys}, "w")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"rate": {"requests": 5}}, r"key of `rate`.*`requests`; did you mean `requests_per_min"),
        ({"rate": {"in_flight": 0}}, r"`rate.in_flight`.*greater than or equal to 1"),
        ({"rate": {"tokens_per_minute": float("inf")}}, r"`rate.tokens_per_minute`"),
        ({"rate": 5}, r"`rate`"),
        ({"retries": {"attempt": 2}}, r"`attempt`; did you mean `attempts`"),
        ({"retries": {"attempts": 0}}, r"`retries.attempts`"),
        ({"retries": {"attempts": 99}}, r"`retries.attempts`.*less than or equal to 20"),
        ({"retries": {"deadline": float("nan")}}, r"`retries.deadline`.*finite"),
        ({"retries": {"deadline": float("inf")}}, r"`retries.deadline`.*finite"),
        ({"budget": {"usd": float("nan")}}, r"`budget.usd`: Input should be a finite number"),
        ({"budget": {"seconds": float("inf")}}, r"`budget.seconds`: Input should be a finite"),
        ({"limits": {"seconds": float("nan")}}, r"`limits.seconds`: Input should be a finite"),
        ({"prices": {"m": {"prompt": float("nan"), "completion": 1}}}, r"`prices.m.prompt`"),
        ({"decoding": {"temperature": float("nan")}}, r"`decoding.temperature`"),
        ({"fallbacks": "openai:m"}, r"`fallbacks`"),
        ({"cache": "perhaps"}, r"`cache`"),
    ],
)
def test_a_wrong_value_is_told(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        workflow(**keys)


@pytest.mark.parametrize(
    ("model", "keys", "told"),
    [
        ("embedded", {"fallbacks": ["openai:m"]}, "its replies are trained on"),
        ("vllm", {"fallbacks": ["openai:m"]}, "its replies are trained on"),
        ("openai:m", {"fallbacks": ["embedded"]}, "it is local; name an API model"),
        ("openai:m", {"fallbacks": ["gpt"]}, "write one of"),
        ("openai:m", {"fallbacks": ["openai:b", "openai:b"]}, "`b` stands twice"),
        ("openai:m", {"fallbacks": ["openai:m"]}, "`m` stands twice"),
        ("openai:m", {"fallbacks": ["http://h/v1#b"]}, "`api.openai.com` and to `h`.*OPENAI_BASE"),
        ("http://h/v1", {"cache": True}, r"write `model: http://h/v1#NAME`"),
        ("openai:m", {"budget": {"usd": 1}}, r"price of `m`; add `prices: {m: {prompt: X"),
        ("openai:m", {"limits": {"usd": 1}}, r"`limits.usd` cannot.*`m`.*prices: {m: {prompt: X"),
        ("http://h/v1", {"limits": {"usd": 1}}, r"price of `http://h/v1`.*`prices: {\"\*\": {pro"),
        ("http://h/v1", {"budget": {"usd": 1}}, r"price of `http://h/v1`.*limit `budget.tokens`"),
        (
            "openai:m",
            {"budget": {"usd": 1}, "prices": {"m": {"prompt": 1, "completion": 1}},
             "fallbacks": ["openai:b"]},
            "price of `b`",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_told(model: str, keys: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        check_calls(workflow(**keys), parse(model, KEY), KEY)


def test_what_fits() -> None:
    priced = {"prices": {"*": {"prompt": 1, "completion": 2}}, "budget": {"usd": 1}}
    check_calls(workflow(fallbacks=["openai:b"], cache=True, **priced), parse("openai:m", KEY), KEY)
    check_calls(workflow(budget={"usd": 1}), parse("embedded", {}), {})
    check_calls(workflow(budget={"usd": 1}), parse("litellm:a/b", {}), {})  # its replies tell
    check_calls(workflow(limits={"usd": 1}), parse("litellm:a/b", {}), {})
    check_calls(workflow(limits={"usd": 1}), parse("embedded", {}), {})
    check_calls(workflow(limits={"usd": 1}, **priced), parse("openai:m", KEY), KEY)
    check_calls(workflow(limits={"usd": 1}, **priced), parse("http://h/v1", {}), {})
    check_calls(workflow(fallbacks=["openai:b"], cache=True), parse("scripted"), {})  # no key here
    bound = {**KEY, "OPENAI_BASE_URL": "https://api.openai.com/v1"}  # the other gets no key
    check_calls(workflow(fallbacks=["http://h/v1#b"]), parse("openai:m", bound), bound)


@pytest.fixture
def archive(tmp_path: Path) -> Any:
    opened = Archive(tmp_path)
    yield opened
    opened.close()


def ask(
    archive: Archive, spec: Workflow, calls: int = 1, *, run: str = "r", meter: Meter | None = None
) -> tuple[list[Completion], Meter]:
    """So many different calls, one after the other, as a run of this workflow makes them."""
    given = parse(spec.model)
    meter = meter or Meter(
        spec.budget, prices(spec, given), spent=archive.spent(run),
        unconfirmed=archive.unconfirmed(run),
    )  # fmt: skip

    async def scenario() -> list[Completion]:
        async with AsyncExitStack() as stack:
            transport = connect(given)
            stack.push_async_callback(transport.close)
            model = lend_model(
                spec, given, transport, meter=meter, stack=stack,
                journal=ScopedJournal(archive, run),
            )  # fmt: skip
            return [await model.complete(request(number, run)) for number in range(calls)]

    return asyncio.run(scenario()), meter


def request(number: int, run: str) -> Request:
    return Request(
        messages=(Message(role="user", content=f"question {number}"),),
        sampling=Sampling(max_tokens=20), key=f"ep-{run}/{number}",
    )  # fmt: skip


def test_a_fallback_answers_and_is_on_record(archive: Archive) -> None:
    with FakeEndpoint(503) as down, FakeEndpoint(chat("hi", model="b-1")) as up:
        spec = workflow(
            model=f"{down.base_url}#a", fallbacks=[f"{up.base_url}#b"],
            retries={"attempts": 2, "deadline": 20},
        )  # fmt: skip
        [done], meter = ask(archive, spec)
    assert (done.fallback, done.model) == (f"{up.base_url}#b", "b-1")
    assert meter.total.calls == done.usage.calls == down.calls + up.calls == 3
    kept = archive.call("ep-r/0")
    assert kept is not None and kept.fallback == done.fallback


def test_the_attempts_and_the_deadline_are_the_workflow_s(archive: Archive) -> None:
    with FakeEndpoint(Reply({"error": "busy"}, 503)) as fake:
        spec = workflow(model=f"{fake.base_url}#a", retries={"attempts": 2})
        with pytest.raises(ModelError):
            ask(archive, spec)
        assert fake.calls == 2
    with FakeEndpoint(Reply(delay=30)) as fake:
        started = time.monotonic()
        with pytest.raises(ModelError) as caught:
            ask(archive, workflow(model=f"{fake.base_url}#a", retries={"deadline": 0.3}))
        assert caught.value.reason == "model_timeout" and time.monotonic() - started < 5


def test_a_cached_reply_costs_a_later_run_nothing(archive: Archive) -> None:
    with FakeEndpoint(chat("hi", usage=(7, 3))) as fake:
        spec = workflow(
            model=f"{fake.base_url}#a", cache=True,
            prices={"*": {"prompt": 1e6, "completion": 1e6}},
        )  # fmt: skip
        _, first = ask(archive, spec, 3)
        again, second = ask(archive, spec, 3, run="s")
        assert fake.calls == 3
    assert all(one.cached and one.usage.usd == 0 for one in again)
    assert (first.total.usd, second.total.usd, second.total.calls) == (30.0, 0.0, 0)
    assert archive.spent("r") == first.total and archive.spent("s") == second.total


def test_the_books_of_a_run_taken_up_again_are_those_of_its_server(archive: Archive) -> None:
    """Killed after five calls and run again: the five are not asked for, and all are counted."""
    answers = [chat("hi", usage=(7, 3)), Reply({"error": "busy"}, 503)]
    with FakeEndpoint(lambda payload: answers[fake.calls % 3 == 0]) as fake:
        spec = workflow(
            model=f"{fake.base_url}#a", prices={"*": {"prompt": 1, "completion": 1}},
        )  # fmt: skip
        ask(archive, spec, 5)
        done, meter = ask(archive, spec, 9)
        assert len(done) == 9
        assert meter.total.calls == fake.calls > 9
    assert (meter.total.tokens, meter.total.usd) == (90, pytest.approx(90e-6))


def test_answers_that_are_refused_are_in_the_books_of_a_run_taken_up_again(
    archive: Archive,
) -> None:
    refused = {**chat("", usage=(5000, 1000)), "choices": []}
    with FakeEndpoint([refused, refused, chat("hi", usage=(7, 3))]) as fake:
        spec = workflow(
            model=f"{fake.base_url}#a", prices={"*": {"prompt": 1, "completion": 1}},
            retries={"attempts": 1}, budget={"tokens": 12_000},
        )  # fmt: skip
        for _ in range(2):
            with pytest.raises(ModelError, match="unreadable"):
                ask(archive, spec)
        assert archive.spent("r").tokens == 12_000
        assert archive.spent("r").usd == pytest.approx(0.012)
        with pytest.raises(BudgetReached, match=r"12000 used"):
            ask(archive, spec)
        assert fake.calls == 2


def test_attempts_without_an_answer_are_known_to_a_run_taken_up_again(archive: Archive) -> None:
    with FakeEndpoint([Reply(cut=True), Reply(delay=30), chat("hi", usage=(7, 3))]) as fake:
        spec = workflow(
            model=f"{fake.base_url}#a", prices={"*": {"prompt": 1e6, "completion": 1e6}},
            retries={"deadline": 0.5, "attempts": 1},
        )  # fmt: skip
        for told in ("cannot be reached", "did not answer"):
            with pytest.raises(ModelError, match=told):
                ask(archive, spec)
        guessed = archive.unconfirmed("r")
        assert guessed.calls == 2 and guessed.tokens == guessed.usd > 0
        [_], meter = ask(archive, spec)
    assert (meter.total.tokens, meter.unconfirmed) == (10, guessed)
    cost = cost_of(meter, archive, "r", 1.0)
    assert cost.unconfirmed == Unconfirmed(calls=2, tokens=guessed.tokens, usd=guessed.usd)
    assert "$10.0000 and perhaps $" in dollars(cost) and "2 calls without" in dollars(cost)


def test_a_note_that_cannot_be_made_ends_the_run(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(archive, "add_unanswered", full)
    with FakeEndpoint(Reply(cut=True)) as fake, pytest.raises(StoreError, match="disk is full"):
        ask(archive, workflow(model=f"{fake.base_url}#a", retries={"attempts": 1}))


def test_a_budget_ends_the_run_before_the_call(archive: Archive) -> None:
    with FakeEndpoint(chat("hi", usage=(7, 3))) as fake:
        spec = workflow(model=f"{fake.base_url}#a", budget={"tokens": 35})
        with pytest.raises(BudgetReached, match="35 tokens"):
            ask(archive, spec, 9)
        assert fake.calls == 4


def test_a_rate_holds_for_the_whole_run(archive: Archive) -> None:
    """Four calls at two a minute take a minute: it is stopped while it waits, after two."""
    with FakeEndpoint(chat("hi")) as fake:
        spec = workflow(model=f"{fake.base_url}#a", rate={"requests_per_minute": 2})
        meter = Meter()

        async def scenario() -> None:
            async with AsyncExitStack() as stack:
                given = parse(spec.model)
                transport = connect(given)
                stack.push_async_callback(transport.close)
                model = lend_model(
                    spec, given, transport, meter=meter, stack=stack,
                    journal=ScopedJournal(archive, "r"),
                )  # fmt: skip
                async with asyncio.timeout(1):
                    await asyncio.gather(*(model.complete(request(n, "r")) for n in range(4)))

        with pytest.raises(TimeoutError):
            asyncio.run(scenario())
        assert fake.calls == meter.total.calls == 2
