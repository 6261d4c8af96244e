"""The transport's own matters: extensions, the session, caps, and where the key goes."""

from __future__ import annotations

import asyncio
import gc

import pytest
from fake_endpoint import FakeEndpoint, Reply, chat

from agentloop.errors import ModelError, UsageError
from agentloop.models import faults
from agentloop.models.openai_compatible import OpenAICompatible
from agentloop.records import Completion, Message, Request, Sampling, ToolSpec

HELLO = Request(messages=(Message(role="user", content="hello"),))


def once(
    fake: FakeEndpoint, request: Request = HELLO, *, key: str = "", **how: object
) -> Completion:
    async def call() -> Completion:
        model = OpenAICompatible(fake.base_url, key, **how)  # type: ignore[arg-type]
        try:
            return await model.complete(request)
        finally:
            await model.close()

    return asyncio.run(call())


def test_extensions_give_exact_ids_and_logprobs() -> None:
    conversation = Request(
        messages=(*HELLO.messages, Message(role="assistant", content="x", token_ids=(4, 5))),
        sampling=Sampling(top_k=3),
    )
    with FakeEndpoint(chat("hi", ids=([1, 2, 3], [8, 9], [-0.5, -0.25]), usage=None)) as fake:
        done = once(fake, conversation, model="m", extensions=True)
    sent = fake.payloads[0]
    assert sent["logprobs"] is True and sent["return_token_ids"] is True and sent["top_k"] == 3
    assert sent["messages"][1]["token_ids"] == [4, 5] and "token_ids" not in sent["messages"][0]
    assert (done.prompt_ids, done.completion_ids) == ((1, 2, 3), (8, 9))
    assert done.message.token_ids == (8, 9) and done.logprobs == (-0.5, -0.25)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 2)


def test_logprobs_that_do_not_fit_the_ids_are_not_used() -> None:
    with FakeEndpoint(chat("hi", ids=([1], [8, 9], [-0.5]))) as fake:
        done = once(fake, model="m", extensions=True)
    assert done.completion_ids == (8, 9) and done.logprobs is None


def test_tools_are_not_sent_to_a_model_without_native_tools() -> None:
    tool = ToolSpec(name="t", description="", parameters={"type": "object"})
    with FakeEndpoint() as fake:
        once(fake, Request(messages=HELLO.messages, tools=(tool,)), model="m", native_tools=False)
    assert "tools" not in fake.payloads[0]


def test_an_unnamed_model_is_the_first_of_the_endpoint() -> None:
    with FakeEndpoint(models=("first", "second")) as fake:
        once(fake)
    assert fake.payloads[0]["model"] == "first"


def test_calls_that_begin_together_ask_for_the_models_once() -> None:
    async def scenario(fake: FakeEndpoint, key: str) -> list[Completion | BaseException]:
        model = OpenAICompatible(fake.base_url, key)
        calls = (model.complete(HELLO) for _ in range(64))
        try:
            return await asyncio.gather(*calls, return_exceptions=True)
        finally:
            await model.close()

    with FakeEndpoint(models=("first", "second"), key="k") as fake:
        done = asyncio.run(scenario(fake, "k"))
        assert {type(one) for one in done} == {Completion} and fake.listings == 1
        failed = asyncio.run(scenario(fake, "another"))
        assert {type(one) for one in failed} == {ModelError} and fake.listings == 2
        assert len({id(one) for one in failed}) == 64


def test_an_endpoint_without_models_says_so() -> None:
    with FakeEndpoint(models=()) as fake, pytest.raises(ModelError, match="no list of models"):
        once(fake)


def test_a_redirect_is_refused_and_not_followed() -> None:
    with FakeEndpoint("stolen") as other:
        moved = Reply(status=307, headers={"Location": f"{other.base_url}/chat/completions"})
        with FakeEndpoint(moved) as fake, pytest.raises(ModelError) as caught:
            once(fake, key="secret", model="m")
        assert other.calls == 0 and not caught.value.retryable


def test_a_body_over_the_cap_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "MAX_BODY", 2**20)
    with FakeEndpoint("x" * 2**21) as fake, pytest.raises(ModelError, match="more than 1 MiB"):
        once(fake, model="m")


def test_an_answer_of_many_chunks_is_put_together_in_order() -> None:
    text = "".join(f"{number} " for number in range(200_000))
    with FakeEndpoint(text) as fake:
        assert once(fake, model="m").message.content == text


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_session_left_open_on_another_loop_is_not_used() -> None:
    with FakeEndpoint() as fake:
        model = OpenAICompatible(fake.base_url, model="m")
        asyncio.run(model.complete(HELLO))  # left open: the loop is gone
        asyncio.run(model.complete(HELLO))
        del model
        gc.collect()
        assert fake.calls == 2


def test_one_instance_works_again_after_close() -> None:
    with FakeEndpoint() as fake:
        model = OpenAICompatible(fake.base_url, model="m")

        async def twice() -> None:
            await model.complete(HELLO)
            await model.close()
            await model.close()
            await model.complete(HELLO)
            await model.close()

        asyncio.run(twice())
        asyncio.run(twice())
        assert fake.calls == 4


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/v1",
        "host/v1",
        "http://",
        "http://u:secret@host/v1",
        "http://h:x/",
        "http://host/v1?key=secret",
    ],
)
def test_a_url_that_cannot_work_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        OpenAICompatible(url)
    assert "secret" not in str(caught.value)


def test_a_key_with_a_line_break_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="control characters"):
        OpenAICompatible("http://host/v1", "a\nb")


def test_the_fake_runs_in_the_loop_of_a_test_too() -> None:
    async def scenario() -> str:
        async with FakeEndpoint(lambda payload: payload["messages"][-1]["content"]) as fake:
            model = OpenAICompatible(fake.base_url, model="m")
            done = await model.complete(HELLO)
            await model.close()
            return done.message.content

    assert asyncio.run(scenario()) == "hello"
