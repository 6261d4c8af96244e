"""The champion behind OpenAI's own client: answers, tools, streams, errors, and nothing else."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import openai
import pytest
from live_fixtures import TOOL, live, said

from agentloop.errors import ModelError, UsageError
from agentloop.gateway.front import BUNDLE, Front
from agentloop.gateway.http import loopback
from agentloop.live.conversations import digest
from agentloop.records import Message
from agentloop.store.query import Query


async def text_of(stream: Any) -> tuple[str, set[str | None], set[str]]:
    """What a stream says, its fingerprints and its ids."""
    text, prints, ids = "", set(), set()
    async for chunk in stream:
        prints.add(chunk.system_fingerprint)
        ids.add(chunk.id)
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
    return text, prints, ids


def test_the_workflows_agent_answers_openais_client(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(tmp_path) as one, one.client() as sdk:
            assert [model.id async for model in sdk.models.list()] == ["tiny"]
            raw = await sdk.chat.completions.with_raw_response.create(
                model="tiny", messages=said("hello")
            )
            reply = raw.parse()
            champion = one.service.health()["champion"]
            assert reply.choices[0].message.content == "MARK-0 base turn 1"
            assert reply.choices[0].finish_reason == "stop" and reply.model == "tiny"
            assert reply.system_fingerprint == champion == raw.headers[BUNDLE]
            assert reply.usage is not None and reply.usage.total_tokens > 0
            # it is the agent, not the model: a tool of the workflow is used on the way
            used = await sdk.chat.completions.create(model="x", messages=said("compute 6*7"))
            assert used.choices[0].message.content == "MARK-0 base got 42"
            stream = await sdk.chat.completions.create(
                model="x", messages=said("compute 2*4"), stream=True
            )
            text, prints, ids = await text_of(stream)
            assert (text, prints, len(ids)) == ("MARK-0 base got 8", {champion}, 1)
            assert reply.id not in ids

    asyncio.run(main())


def test_a_conversation_goes_to_the_agent_whole(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(tmp_path) as one, one.client() as sdk:
            messages = said("hello")
            for turn in (1, 3, 5):
                reply = await sdk.chat.completions.create(model="x", messages=messages, store=True)
                text = reply.choices[0].message.content
                assert text == f"MARK-0 base turn {turn}"
                messages += [{"role": "assistant", "content": text}, *said("and then?")]
            assert one.service.health()["conversations"] == 1
            system: Any = [{"role": "system", "content": "MARK-9"}]
            reply = await sdk.chat.completions.create(model="x", messages=system + said("hello"))
            assert reply.choices[0].message.content == "MARK-0 MARK-9 base turn 1"
            episodes = one.archive.episodes(Query(purpose="serve"))
            assert [len(e.trajectories[0].nodes) for e in episodes] == [3, 5, 7]
            assert all(e.task.prompt == "and then?" for e in episodes[1:])

    asyncio.run(main())


def test_what_the_client_asks_of_sampling_holds_for_the_agents_calls(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(tmp_path) as one, one.client() as sdk:
            await sdk.chat.completions.create(
                model="x", messages=said("hi"), temperature=0.7, max_tokens=9, store=True
            )
            [episode] = one.archive.episodes(Query(purpose="serve"))
            sampled = next(node for node in episode.trajectories[0].nodes if node.sampled)
            assert sampled.sampling is not None and sampled.sampling.seed is not None
            assert (sampled.sampling.temperature, sampled.sampling.max_tokens) == (0.7, 9)

    asyncio.run(main())


def test_with_tools_the_client_runs_the_agent_and_all_its_turns_are_one_trajectory(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with live(tmp_path, idle=1) as one, one.client() as sdk:
            ask = sdk.chat.completions.create
            messages = said("call it")
            first = await ask(model="x", messages=messages, tools=[TOOL], store=True)
            [call] = first.choices[0].message.tool_calls or ()
            assert (call.function.name, first.choices[0].finish_reason) == ("add", "tool_calls")
            messages += [
                first.choices[0].message,
                {"role": "tool", "tool_call_id": call.id, "content": "four"},
            ]
            stream = await ask(model="x", messages=messages, tools=[TOOL], store=True, stream=True)
            text, _, [second] = await text_of(stream)
            assert text == "Answer: MARK-0 base got four"
            assert second.rpartition("-")[0] == first.id.rpartition("-")[0] and second != first.id
            messages += [{"role": "assistant", "content": text}, *said("more")]
            third = await ask(model="x", messages=messages, tools=[TOOL], store=True)
            assert third.id.rpartition("-")[0] == first.id.rpartition("-")[0]
            [episode] = await one.episodes(1)
            assert episode.usage.calls == 3 and episode.failure is None
            [trajectory] = episode.trajectories
            # a scripted model is told of tools and their results in text
            assert [node.message.role for node in trajectory.nodes] == [
                "system", "user", "assistant", "user", "assistant", "user", "assistant",
            ]  # fmt: skip
            assert trajectory.drift == 0 and one.ended == []

    asyncio.run(main())


def test_conversations_that_read_the_same_do_not_share_a_trajectory(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(tmp_path, idle=1) as one, one.client() as sdk:

            async def talk(_: int) -> None:
                messages = said("call it")
                for _ in range(3):
                    reply = await sdk.chat.completions.create(
                        model="x", messages=messages, tools=[TOOL], store=True
                    )
                    messages += [reply.choices[0].message, *said("call it again")]

            await asyncio.gather(*(talk(at) for at in range(8)))
            assert one.service.health()["conversations"] == 8
            episodes = await one.episodes(8)
            assert [episode.usage.calls for episode in episodes] == [3] * 8
            assert all(e.trajectories[0].drift == 0 for e in episodes)

    asyncio.run(main())


def test_errors_have_openais_shape(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(tmp_path) as one, one.client() as sdk:
            ask = sdk.chat.completions.create
            with pytest.raises(openai.BadRequestError, match="last message"):
                await ask(model="x", messages=said("hi", "hello"))
            with pytest.raises(openai.BadRequestError, match="`n`"):
                await ask(model="x", messages=said("hi"), n=2)
            with pytest.raises(openai.BadRequestError, match="x-agentloop-store"):
                await ask(
                    model="x", messages=said("hi"), extra_headers={"x-agentloop-store": "maybe"}
                )
            with pytest.raises(openai.RateLimitError) as reached:
                messages = said("call it")
                for _ in range(5):
                    reply = await ask(model="x", messages=messages, tools=[TOOL])
                    messages += [reply.choices[0].message, *said("call it")]
            assert reached.value.code == "turn_limit"

            async def down(request: Any) -> None:
                raise ModelError("down", reason="model_timeout")

            one.bench.model.complete = down  # type: ignore[method-assign,assignment]
            for options in ({}, {"tools": [TOOL]}):
                with pytest.raises(openai.InternalServerError) as caught:
                    await ask(model="x", messages=said("hi"), **options)  # type: ignore[call-overload]
                assert (caught.value.status_code, caught.value.code) == (503, "model_timeout")
            assert one.service.health()["failed"] == 4

    asyncio.run(main())


def test_only_the_listed_routes_answer_and_only_with_the_token(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(tmp_path) as one:
            found = {}
            for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"):
                for path in (
                    "/", "/v1", "/v1/models", "/v1/chat/completions", "/v1/completions", "/health",
                    "/feedback", "/r/x", "/r/x/v1/models", "/r/x/v1/chat/completions", "/metrics",
                    "/v1/load_lora_adapter", "/docs", "/../etc/passwd",
                ):  # fmt: skip
                    url = one.root + path
                    async with one.http.request(method, url, json={}) as answer:
                        found[method, path] = answer.status
                        if method != "HEAD":
                            assert "error" in await answer.json() or answer.status == 200
            opened = {place for place, status in found.items() if status == 200}
            assert opened == {("GET", "/health"), ("HEAD", "/health")}
            token = {"Authorization": f"Bearer {one.front.token}"}
            allowed = set()
            for method, path in found:
                async with one.http.request(
                    method, one.root + path, json={}, headers=token
                ) as answer:
                    if answer.status not in (404, 405):
                        allowed.add((method, path))
            assert allowed == opened | {
                ("GET", "/v1/models"), ("HEAD", "/v1/models"), ("POST", "/v1/chat/completions"),
                ("GET", "/r/x/v1/models"), ("HEAD", "/r/x/v1/models"),
                ("POST", "/r/x/v1/chat/completions"), ("POST", "/feedback"),
            }  # fmt: skip
            status, health = await one.send("GET", "/health", None, Host="localhost")
            assert status == 200 and one.front.token not in str(health)
            assert (await one.send("GET", "/health", None, Host="evil.example"))[0] == 400

    asyncio.run(main())


def test_nothing_listens_beyond_loopback(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(tmp_path) as one:
            port = int(one.root.rpartition(":")[2])
            assert one.front._runner is not None
            hosts = {str(address[0]) for address in one.front._runner.addresses}
            assert hosts == {"127.0.0.1"}
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
                address, state = line.split()[1], line.split()[3]
                if state == "0A" and int(address[-4:], 16) == port:
                    assert address.startswith("0100007F")
            with pytest.raises(UsageError, match="cannot be used"):
                async with Front(one.service, port=port):
                    pass

    asyncio.run(main())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "127.0.0.2", "example.org", ""])
def test_other_hosts_are_refused(host: str) -> None:
    with pytest.raises(UsageError, match="not a loopback"):
        loopback(host)
    assert loopback("localhost") == "127.0.0.1" and loopback("::1") == "::1"


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_the_address_of_an_ipv6_host_is_an_address(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(tmp_path) as one:
            front = Front(one.service, host="::1")
            assert front.base_url("a b") == "http://[::1]:0/r/a%20b/v1"

    asyncio.run(main())


def test_a_digest_tells_conversations_apart() -> None:
    user, reply = Message(role="user", content="a"), Message(role="assistant", content=" b ")
    assert digest((user, reply)) == digest((user, Message(role="assistant", content="b")))
    others = [
        (Message(role="user", content="a "), reply),
        (Message(role="system", content="a"), reply),
        (user, Message(role="assistant", content="")),
        (user,),
    ]
    assert len({digest((user, reply)), *map(digest, others)}) == 5
