"""One client, many calls: the process that `benchmarks.calls` starts for each variant.

In: the client's name, the mock's base URL, how many calls and how many at a time. Out: one line of
JSON, `{"version": ..., "cpu_us_N": microseconds of CPU per call, "wall_us_N": ...}` with each N in
flight. Of agentloop it imports its own variant alone, so that it runs in a peer's environment too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from benchmarks.harness import spent, versions

TEXT = "You solve one problem at a time. Think in small steps, call the calculator for sums. " * 6
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": TEXT},
    {"role": "user", "content": "A train leaves at 6 and drives 42 km/h. How far is it by 7?"},
]
PARAMETERS: dict[str, Any] = {"type": "object", "properties": {"expression": {"type": "string"}},
              "required": ["expression"]}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "calculator", "description": "Works out a sum.",
                                         "parameters": PARAMETERS}}  # fmt: skip
BODY: dict[str, Any] = {
    "model": "mock", "messages": MESSAGES, "tools": [TOOL],
    "temperature": 0.7, "top_p": 1.0, "max_tokens": 256,
}  # fmt: skip
WITH_IDS = {**BODY, "logprobs": True, "return_token_ids": True}
Call = Callable[[], Awaitable[object]]
Client = Callable[[str], AbstractAsyncContextManager[Call]]


@asynccontextmanager
async def agentloop(base_url: str, *, ids: bool = False) -> Any:
    """The transport of rollouts; with `ids`, token ids and log-probs are asked for and kept."""
    from agentloop.models.openai_compatible import OpenAICompatible
    from agentloop.records import Message, Request, Sampling, ToolSpec

    model = OpenAICompatible(base_url, "key", model="mock", extensions=ids)
    system, user = (str(message["content"]) for message in MESSAGES)
    tool = ToolSpec(name="calculator", description="Works out a sum.", parameters=PARAMETERS)

    async def call() -> object:
        messages = (Message(role="system", content=system), Message(role="user", content=user))
        sampling = Sampling(temperature=0.7, max_tokens=256)
        done = await model.complete(Request(messages=messages, tools=(tool,), sampling=sampling))
        assert (done.completion_ids is not None) is ids
        return done

    yield call
    await model.close()


@asynccontextmanager
async def bare(base_url: str, body: Mapping[str, Any] = BODY) -> Any:
    """The same request by `aiohttp` alone: a total deadline, the reply read and parsed."""
    import aiohttp

    async with aiohttp.ClientSession(
        headers={"Authorization": "Bearer key"},
        timeout=aiohttp.ClientTimeout(total=120),
        connector=aiohttp.TCPConnector(limit=0),
    ) as session:

        async def call() -> object:
            async with session.post(f"{base_url}/chat/completions", json=body) as response:
                response.raise_for_status()
                return await response.json()

        yield call


@asynccontextmanager
async def openai(base_url: str) -> Any:
    """The SDK as its README shows it, without retries."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=base_url, api_key="key", max_retries=0) as client:
        yield lambda: client.chat.completions.create(**BODY)


@asynccontextmanager
async def litellm(base_url: str) -> Any:
    """`acompletion` as its README shows it."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no price list from the network
    import litellm as library

    body = {**BODY, "model": "openai/mock"}
    yield lambda: library.acompletion(api_base=base_url, api_key="key", **body)


@asynccontextmanager
async def raw_socket(base_url: str) -> Any:
    """No client at all: the bytes sent and received by one blocking socket, one call at a time."""
    where = urlsplit(base_url)
    body = json.dumps(BODY).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((where.hostname, where.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        async def call() -> object:
            connection.sendall(head.encode() + body)
            return connection.recv(2**16)

        yield call


CLIENTS: dict[str, Client] = {
    "agentloop": agentloop, "agentloop with ids": partial(agentloop, ids=True),
    "aiohttp": bare, "aiohttp with ids": partial(bare, body=WITH_IDS),
    "openai": openai, "litellm": litellm, "raw socket": raw_socket,
}  # fmt: skip


async def drive(call: Call, calls: int, in_flight: int) -> None:
    """`calls` calls by `in_flight` workers."""
    left = iter(range(calls))

    async def worker() -> None:
        for _ in left:
            await call()

    await asyncio.gather(*(worker() for _ in range(in_flight)))


async def measure(client: Client, base_url: str, calls: int, levels: list[int]) -> dict[str, float]:
    """Microseconds per call at each level, its connections opened before the clock starts."""
    found: dict[str, float] = {}
    async with client(base_url) as call:
        for level in levels:
            await drive(call, max(16, 2 * level), level)
            number = max(calls, 2 * level)
            with spent() as took:
                await drive(call, number, level)
            found[f"cpu_us_{level}"] = 1e6 * took.cpu / number
            found[f"wall_us_{level}"] = 1e6 * took.wall / number
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.call_clients")
    parser.add_argument("client", choices=CLIENTS)
    parser.add_argument("base_url")
    parser.add_argument("calls", type=int)
    parser.add_argument("in_flight", help="e.g. 1,16,64")
    given = parser.parse_args()
    levels = [int(level) for level in given.in_flight.split(",")]
    run = measure(CLIENTS[given.client], given.base_url, given.calls, levels)
    found = asyncio.run(run)
    package = given.client.removesuffix(" with ids")
    version = versions([package])[package] if package != "raw socket" else ""
    print(json.dumps({"version": version, **found}))


if __name__ == "__main__":
    main()
