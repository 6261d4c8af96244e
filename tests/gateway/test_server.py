"""The endpoint over HTTP: what OpenAI's client sees, what is recorded, who is turned away."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import openai
import pytest
from gateway_fixtures import lent_session

from agentloop.errors import BudgetReached, ModelError, UsageError
from agentloop.gateway.http import host_of
from agentloop.gateway.server import Gateway
from agentloop.models.scripted import Scripted
from agentloop.records import Completion, Endpoint, Limits, Message, Request, ToolCall

TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
}
HELLO: Any = [{"role": "user", "content": "hello"}]
TEXT = {"type": "text", "text": "what is this"}


def client(endpoint: Endpoint) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.token)


async def post(
    endpoint: Endpoint, body: Any, *, headers: dict[str, str] | None = None, path: str = ""
) -> tuple[int, Any]:
    given = {"Authorization": f"Bearer {endpoint.token}"} | (headers or {})
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            path or f"{endpoint.base_url}/chat/completions", data=data, headers=given
        ) as answer,
    ):
        return answer.status, await answer.json()


def test_a_conversation_of_the_openai_client_is_recorded_token_for_token() -> None:
    call = ToolCall(id="c-1", name="add", arguments={"a": 2, "b": 3})
    model = Scripted([Message(role="assistant", content="", tool_calls=(call,)), "It is 5."])

    async def main() -> Any:
        async with lent_session(model) as (_, lent, endpoint), client(endpoint) as sdk:
            messages: Any = [{"role": "user", "content": [{"type": "text", "text": "2 + 3?"}]}]
            first = await sdk.chat.completions.create(model="m", messages=messages, tools=[TOOL])
            said = first.choices[0].message
            messages += [said, {"role": "tool", "tool_call_id": "c-1", "content": "5"}]
            second = await sdk.chat.completions.create(model="m", messages=messages, tools=[TOOL])
            return first, second, lent

    first, second, lent = asyncio.run(main())
    [made] = first.choices[0].message.tool_calls
    assert (made.id, made.function.name) == ("c-1", "add")
    assert json.loads(made.function.arguments) == {"a": 2, "b": 3}
    assert first.choices[0].finish_reason == "tool_calls"
    assert second.choices[0].message.content == "It is 5."
    assert second.usage.total_tokens == second.usage.prompt_tokens + second.usage.completion_tokens
    trajectory = lent.recorder.trajectory()
    assert [node.message.role for node in trajectory.nodes] == [
        "system", "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert trajectory.nodes[0].message.content == "Be brief."
    assert all(node.token_ids for node in trajectory.nodes if node.sampled)
    assert trajectory.drift == 0 and lent.usage.calls == 2


def test_a_stream_is_the_same_reply_in_chunks() -> None:
    call = ToolCall(id="c-1", name="add", arguments={"a": 2})
    message = Message(role="assistant", content="I add.", tool_calls=(call,))

    async def main() -> Any:
        options: Any = {"include_usage": True}
        async with (
            lent_session(Scripted([message])) as (_, lent, endpoint),
            client(endpoint) as sdk,
            sdk.chat.completions.stream(
                model="m", messages=HELLO, stream_options=options
            ) as stream,
        ):
            return await stream.get_final_completion(), lent.usage

    whole, usage = asyncio.run(main())
    [made] = whole.choices[0].message.tool_calls
    assert whole.choices[0].message.content == "I add."
    assert made.function.name == "add" and json.loads(made.function.arguments) == {"a": 2}
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.usage.completion_tokens == usage.completion_tokens > 0


def test_what_the_client_sets_reaches_the_model_and_the_rest_is_the_workflows() -> None:
    seen: list[Request] = []

    def reply(request: Request) -> str:
        seen.append(request)
        return "ok"

    async def main() -> None:
        async with lent_session(Scripted(reply)) as (_, _lent, endpoint), client(endpoint) as sdk:
            assert [one.id async for one in sdk.models.list()] == ["agentloop"]
            await sdk.chat.completions.create(
                model="whatever", messages=HELLO, temperature=0.7, max_completion_tokens=9,
                stop=["\n"], user="me", tools=[TOOL], tool_choice="none",
            )  # fmt: skip

    asyncio.run(main())
    [request] = seen
    sampling = request.sampling
    assert (sampling.temperature, sampling.max_tokens, sampling.stop) == (0.7, 9, ("\n",))
    assert sampling.seed is not None and request.tools == ()
    assert "/0-" in request.key


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"surprise": 1}, "surprise"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        (
            {"messages": [HELLO[0], {"role": "user", "content": [TEXT, {"type": "image_url"}]}]},
            "`messages.1.content.1` is of type `image_url`",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0"),
        ({"stop": [""]}, "`stop`"),
        ({"stop": ""}, "`stop`"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [1]}, "stop"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "function_call"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(
    changes: dict[str, Any], named: str
) -> None:
    async def main() -> None:
        async with lent_session(Scripted(["unused"])) as (_, lent, endpoint):
            status, body = await post(endpoint, {"messages": HELLO} | changes)
            assert status == 400 and named in body["error"]["message"]
            assert body["error"]["type"] == "invalid_request_error"
            assert lent.usage.calls == 0

    asyncio.run(main())


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"messages": "x"}', b"null"])
def test_a_body_that_is_no_request_is_a_client_error(body: bytes) -> None:
    async def main() -> None:
        async with lent_session(Scripted(["unused"])) as (_, _lent, endpoint):
            assert (await post(endpoint, body))[0] == 400

    asyncio.run(main())


def test_only_the_token_and_loopback_names_come_in() -> None:
    async def main() -> None:
        async with lent_session(Scripted(["ok"])) as (_, lent, endpoint):
            body = {"messages": HELLO}
            for key in ("", "Bearer", "Bearer wrong", f"Bearer {endpoint.token}x", "Bearer é"):
                status, said = await post(endpoint, body, headers={"Authorization": key})
                assert status == 401 and said["error"]["code"] == "invalid_api_key"
            for host in ("evil.example", "127.0.0.1.evil.example", "", "[::1"):
                assert (await post(endpoint, body, headers={"Host": host}))[0] == 400
            assert lent.usage.calls == 0
            assert (await post(endpoint, body, headers={"Host": "localhost:1"}))[0] == 200

    asyncio.run(main())
    assert host_of("[::1]:80") == "::1" and host_of("LOCALHOST") == "localhost"


def test_names_that_are_not_open() -> None:
    async def main() -> None:
        async with lent_session(Scripted(["ok"])) as (gateway, _lent, endpoint):
            other = endpoint.base_url.replace("/one/", "/two/") + "/chat/completions"
            status, body = await post(endpoint, {"messages": HELLO}, path=other)
            assert status == 404 and "two" in body["error"]["message"]
            with pytest.raises(UsageError, match="runs already"):
                gateway.open("one", Scripted(["x"]))
            gateway.close("one")
            gateway.close("one")
            status, body = await post(endpoint, {"messages": HELLO})
            assert status == 410 and body["error"]["code"] == "rollout_over"
            root = endpoint.base_url.partition("/r/")[0]
            status, body = await post(endpoint, {}, path=f"{root}/v1/chat/completions")
            assert status == 404 and body["error"]["type"] == "not_found_error"

    asyncio.run(main())


def test_a_name_with_odd_characters_is_one_path_segment() -> None:
    async def main() -> None:
        async with Gateway() as gateway:
            gateway.open("a b/c?é", Scripted(["ok"]))
            status, body = await post(gateway.endpoint("a b/c?é"), {"messages": HELLO})
            assert status == 200 and body["id"].startswith("chatcmpl-a b/c?é-")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (BudgetReached("spent"), 429, "insufficient_quota"),
        (ModelError("down", retryable=True), 503, "model_error"),
        (ModelError("slow", reason="model_timeout"), 503, "model_timeout"),
        (ModelError("long", reason="context_overflow"), 400, "context_length_exceeded"),
        (ValueError("a fault of ours"), 500, "internal_error"),
    ],
)
def test_every_failure_has_one_status_and_is_not_repeated_by_the_client(
    fault: Exception, status: int, code: str
) -> None:
    class Broken:
        calls = 0

        async def complete(self, request: Request) -> Completion:
            self.calls += 1
            raise fault

    broken = Broken()

    async def main() -> None:
        async with lent_session(broken) as (_, _lent, endpoint), client(endpoint) as sdk:
            for stream in (False, True):
                with pytest.raises(openai.APIStatusError) as caught:
                    await sdk.chat.completions.create(model="m", messages=HELLO, stream=stream)
                assert caught.value.status_code == status and caught.value.code == code

    asyncio.run(main())
    assert broken.calls == (1 if isinstance(fault, BudgetReached) else 2)


def test_the_rollouts_limits_hold() -> None:
    async def main() -> None:
        model = Scripted(lambda request: "ok")
        async with lent_session(model, Limits(turns=2)) as (_, lent, endpoint):
            answers = [await post(endpoint, {"messages": HELLO}) for _ in range(4)]
            assert [status for status, _ in answers] == [200, 200, 429, 429]
            assert answers[2][1]["error"]["code"] == "turn_limit"
            assert model.calls == 2 and lent.stopped is not None

    asyncio.run(main())


class Slow:
    """A model that takes for ever; says when it is asked and when it is cancelled."""

    def __init__(self) -> None:
        self.asked, self.ended = asyncio.Event(), asyncio.Event()

    async def complete(self, request: Request) -> Completion:
        self.asked.set()
        try:
            await asyncio.sleep(60)
        finally:
            self.ended.set()
        raise AssertionError


def test_a_client_that_goes_away_ends_its_call() -> None:
    async def main() -> None:
        slow = Slow()
        async with lent_session(slow) as (_, _lent, endpoint):
            call = asyncio.create_task(post(endpoint, {"messages": HELLO}))
            await asyncio.wait_for(slow.asked.wait(), 5)
            call.cancel()
            await asyncio.wait_for(slow.ended.wait(), 5)

    asyncio.run(main())


def test_the_end_of_a_rollout_answers_the_call_that_waits() -> None:
    async def main() -> None:
        slow = Slow()
        async with lent_session(slow) as (_, lent, endpoint):
            call = asyncio.create_task(post(endpoint, {"messages": HELLO}))
            await asyncio.wait_for(slow.asked.wait(), 5)
            await lent.close()
            status, body = await asyncio.wait_for(call, 5)
            assert status == 410 and body["error"]["code"] == "rollout_over"
            assert (await post(endpoint, {"messages": HELLO}))[0] == 410

    asyncio.run(main())


def test_a_port_in_use_is_one_sentence() -> None:
    async def main() -> None:
        async with Gateway() as gateway:
            port = int(gateway.endpoint("x").base_url.split(":")[2].partition("/")[0])
            with pytest.raises(UsageError, match="cannot be used"):
                async with Gateway(port=port):
                    pass

    asyncio.run(main())


def test_so_many_rollouts_that_are_over_are_remembered_and_no_more() -> None:
    async def main() -> None:
        async with Gateway() as gateway:
            for number in range(3000):
                gateway.open(f"r{number}", Scripted(["x"]))
                gateway.close(f"r{number}")
            assert len(gateway._over) == 1000
            for number, status in ((2999, 410), (0, 404)):
                found, _ = await post(gateway.endpoint(f"r{number}"), {"messages": HELLO})
                assert found == status
            gateway.open("r2999", Scripted(["x"]))  # a name may come back
            assert (await post(gateway.endpoint("r2999"), {"messages": HELLO}))[0] == 200

    asyncio.run(main())
