"""Every transport keeps one contract: same request, same record; same fault, same typed error."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint, Reply, chat

from agentloop.errors import UNTOLD, ModelError
from agentloop.models import openai, openai_compatible
from agentloop.models.connect import Connected
from agentloop.models.litellm import LiteLLM
from agentloop.models.openai import OpenAIProvider
from agentloop.models.openai_compatible import OpenAICompatible
from agentloop.models.retry import Retrying
from agentloop.models.scripted import Scripted
from agentloop.records import Completion, Message, Request, Sampling, ToolCall, ToolSpec
from agentloop.trajectories.arguments import UNPARSED

KEY = "sk-test-0123456789"
Make = Callable[..., Connected]


def _compatible(base_url: str, timeout: float = 10.0) -> Connected:
    return OpenAICompatible(base_url, KEY, model="fake", timeout=timeout)


def _sdk(base_url: str, timeout: float = 10.0) -> Connected:
    return OpenAIProvider("fake", api_key=KEY, base_url=base_url, timeout=timeout)


def _litellm(base_url: str, timeout: float = 10.0) -> Connected:
    return LiteLLM("openai/fake", api_key=KEY, base_url=base_url, timeout=timeout)


@pytest.fixture(
    params=[
        pytest.param(_compatible, id="openai_compatible"),
        pytest.param(_sdk, id="openai"),
        pytest.param(_litellm, id="litellm", marks=pytest.mark.integration),  # imports for 8 s
    ]
)
def make(request: pytest.FixtureRequest) -> Make:
    return request.param


WEATHER = ToolSpec(
    name="weather",
    description="The weather of a city.",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}},
)
REQUEST = Request(
    messages=(
        Message(role="system", content="Be brief."),
        Message(role="user", content="Weather in Bern?"),
        Message(
            role="assistant",
            content="",
            tool_calls=(ToolCall(id="c1", name="weather", arguments={"city": "Bern"}),),
            token_ids=(1, 2),
        ),
        Message(role="tool", content="rain", tool_call_id="c1"),
    ),
    tools=(WEATHER,),
    sampling=Sampling(temperature=0.5, top_p=0.9, max_tokens=32, seed=7, stop=("END",)),
)


def ask(make: Make, fake: FakeEndpoint | str, request: Request = REQUEST, **how: Any) -> Completion:
    """One call, on a loop of its own."""

    async def call() -> Completion:
        model = make(fake if isinstance(fake, str) else fake.base_url, **how)
        try:
            return await model.complete(request)
        finally:
            await model.close()

    return asyncio.run(call())


def refused(make: Make, script: Any, **how: Any) -> ModelError:
    """The error for a faulty answer; the transport itself must have tried once only."""
    with FakeEndpoint(script) as fake:
        with pytest.raises(ModelError) as caught:
            ask(make, fake, **how)
        assert fake.calls == 1
    return caught.value


# --- the same record ----------------------------------------------------------------------------


def test_text_reply_and_usage(make: Make) -> None:
    with FakeEndpoint(chat("It rains.", model="fake-1", usage=(20, 4)), key=KEY) as fake:
        done = ask(make, fake)
    assert done.message == Message(role="assistant", content="It rains.")
    assert (done.finish_reason, done.policy) == ("stop", None)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.calls) == (20, 4, 1)
    assert done.prompt_ids is done.completion_ids is done.logprobs is None
    assert done.seconds > 0


def test_request_on_the_wire(make: Make) -> None:
    with FakeEndpoint() as fake:
        ask(make, fake)
    sent = fake.payloads[0]
    assert sent["model"] == "fake"
    assert (sent["temperature"], sent["top_p"], sent["seed"], sent["stop"]) == (
        0.5,
        0.9,
        7,
        ["END"],
    )
    assert sent.get("max_tokens", sent.get("max_completion_tokens")) == 32
    assert [message["role"] for message in sent["messages"]] == [
        "system", "user", "assistant", "tool",
    ]  # fmt: skip
    call = sent["messages"][2]["tool_calls"][0]
    assert (call["id"], json.loads(call["function"]["arguments"])) == ("c1", {"city": "Bern"})
    assert sent["messages"][3]["tool_call_id"] == "c1"
    assert sent["tools"][0]["function"]["parameters"] == WEATHER.parameters
    assert not any("token_ids" in message for message in sent["messages"])
    assert "return_token_ids" not in sent and "top_k" not in sent


def test_policy_replaces_the_model_name(make: Make) -> None:
    if make is _litellm:
        pytest.skip("a policy is a served adapter; litellm wants `provider/NAME`")
    request = Request(messages=REQUEST.messages, policy="adapter-1")
    with FakeEndpoint() as fake:
        done = ask(make, fake, request)
    assert fake.payloads[0]["model"] == "adapter-1"
    assert (done.model, done.policy) == ("adapter-1", "adapter-1")


def test_tool_calls(make: Make) -> None:
    body = chat(None, tools=[("weather", {"city": "Bern"}), ("weather", {"city": "Rom"})])
    with FakeEndpoint(body) as fake:
        done = ask(make, fake)
    assert done.finish_reason == "tool_calls"
    assert done.message.content == ""
    assert [(call.name, call.arguments) for call in done.message.tool_calls] == [
        ("weather", {"city": "Bern"}), ("weather", {"city": "Rom"}),
    ]  # fmt: skip


def test_tool_arguments_that_are_not_json_are_kept_for_the_tool_to_refuse(make: Make) -> None:
    with FakeEndpoint(chat("", tools=[("weather", '{"city": ')])) as fake:
        done = ask(make, fake)
    assert done.message.tool_calls[0].arguments == {UNPARSED: '{"city": '}


def test_text_that_is_not_unicode_is_sent_or_refused_by_name(make: Make) -> None:
    if make is _litellm:
        pytest.skip("what it does with such a text is its own")
    request = Request(messages=(Message(role="user", content="caf\udce9"),))
    with FakeEndpoint() as fake:
        try:
            ask(make, fake, request)
        except ModelError as error:
            assert "not Unicode" in str(error) and not error.retryable
            assert error.calls == fake.calls == 0
        else:
            assert fake.calls == 1


def test_the_script_gives_the_same_record() -> None:
    call = ToolCall(id="call-0", name="weather", arguments={"city": "Bern"})
    scripted = Scripted([Message(role="assistant", content="", tool_calls=(call,)), "It rains."])
    first, second = (asyncio.run(scripted.complete(REQUEST)) for _ in range(2))
    assert (first.finish_reason, first.message.tool_calls) == ("tool_calls", (call,))
    assert (second.finish_reason, second.message.content) == ("stop", "It rains.")
    assert second.usage.completion_tokens == 2 and second.usage.calls == 1


# --- the same errors ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_not_retryable(make: Make, status: int) -> None:
    error = refused(make, status)
    assert (error.reason, error.retryable, error.bill) == ("model_error", False, None)


@pytest.mark.parametrize("status", [409, 429, 500, 502, 503, 529])
def test_retryable(make: Make, status: int) -> None:
    error = refused(make, status)
    assert (error.reason, error.retryable, error.bill) == ("model_error", True, None)


def test_context_overflow(make: Make) -> None:
    text = "This model's maximum context length is 10 tokens. Please reduce the messages."
    body = {"error": {"message": text, "code": "context_length_exceeded"}}
    error = refused(make, Reply(body, status=400))
    assert (error.reason, error.retryable) == ("context_overflow", False)


def test_429_is_tried_once_more_after_what_the_endpoint_said(make: Make) -> None:
    wait = Reply({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "0.2"})
    with FakeEndpoint([wait, "ok"]) as fake:

        async def call() -> tuple[Completion, float]:
            model = make(fake.base_url)
            started = time.monotonic()
            try:
                done = await Retrying(model, base=0.0).complete(REQUEST)
            finally:
                await model.close()
            return done, time.monotonic() - started

        done, seconds = asyncio.run(call())
    assert fake.calls == done.usage.calls == 2
    assert done.message.content == "ok" and seconds >= 0.2


def test_hang_past_the_deadline(make: Make) -> None:
    started = time.monotonic()
    error = refused(make, Reply("", delay=30), timeout=0.3)
    assert (error.reason, error.retryable, error.bill) == ("model_timeout", True, UNTOLD)
    assert time.monotonic() - started < (20 if make is _litellm else 5)


@pytest.mark.parametrize(
    "reply",
    [
        Reply('{"choices": [{"mess'),
        Reply("<html>busy</html>", headers={"Content-Type": "text/html"}),
        Reply({**chat("x"), "choices": []}),
        Reply({**chat("x"), "choices": None}),
        Reply(cut=True),
    ],
    ids=["truncated-json", "html", "empty-choices", "null-choices", "connection-cut"],
)
def test_not_a_reply_and_perhaps_billed(make: Make, reply: Reply) -> None:
    error = refused(make, reply)
    assert (error.reason, error.retryable) == ("model_error", True)
    assert error.bill is not None


def test_an_answer_that_is_no_reply_says_what_it_cost(make: Make) -> None:
    error = refused(make, Reply({**chat("x", usage=(5000, 1000)), "choices": [{"message": 5}]}))
    assert error.retryable
    assert error.bill == ((5000, 1000) if make is not _litellm else UNTOLD)


def test_an_answer_of_another_model_than_the_policy_says_what_it_cost(make: Make) -> None:
    if make is _litellm:
        pytest.skip("a policy is a served adapter; litellm wants `provider/NAME`")
    with FakeEndpoint(chat("x", usage=(50, 10))) as fake, pytest.raises(ModelError) as caught:
        ask(make, fake, Request(messages=REQUEST.messages, policy="adapter-1"))
    assert caught.value.bill == (50, 10)


def test_connection_refused(make: Make) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ModelError) as caught:
        ask(make, f"http://127.0.0.1:{port}/v1")
    assert (caught.value.reason, caught.value.retryable) == ("model_error", True)
    assert make is _litellm or caught.value.bill is None  # litellm does not tell it from a lost one


def test_a_connection_that_is_not_made_in_time_is_not_a_slow_answer(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    if make is _litellm:
        pytest.skip("its one deadline is for the whole call")
    monkeypatch.setattr(openai_compatible, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(openai, "_CONNECT_SECONDS", 0.3)
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):  # nobody accepts them, and there is room for one
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        time.sleep(0.05)
        with pytest.raises(ModelError, match="cannot be reached") as caught:
            ask(make, f"http://127.0.0.1:{full.getsockname()[1]}/v1")
    assert (caught.value.reason, caught.value.retryable) == ("model_error", True)
    assert caught.value.bill is None


def test_the_key_is_in_no_error_and_follows_no_redirect(make: Make) -> None:
    with FakeEndpoint("stolen") as other:
        target = other.base_url.replace("127.0.0.1", "localhost") + "/chat/completions"
        with FakeEndpoint(Reply(status=307, headers={"Location": target})) as fake:
            try:
                ask(make, fake)
            except ModelError as error:
                assert KEY not in str(error)
        assert not any(KEY in str(headers) for headers in other.headers)
    error = refused(make, Reply({"error": {"message": f"bad key {KEY}"}}, status=401))
    assert KEY not in str(error)
