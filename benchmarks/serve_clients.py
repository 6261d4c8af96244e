"""One client of the mock model: straight, or through a workflow that is served in this process.

`python -m benchmarks.serve_clients WHO URL REQUESTS TURNS` makes so many requests (conversations of
TURNS calls), some in flight at a time, and prints the CPU of one. What it costs more to go through
the server is the server's: it is the same client, and the mock has a process of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from agentloop.gateway.front import Front
from agentloop.live.serving import Service
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.workflows.assemble import Options, assemble
from agentloop.workflows.load import load
from agentloop.workspace import Workspace
from benchmarks.harness import spent

IN_FLIGHT, WARM, IDLE = 16, 64, 0.2
WORKFLOW = """\
title: Served
model: "{url}#mock"
tasks: {{use: agentloop.tasks.files:Jsonl, path: ./tasks.jsonl}}
graph: react
tools: ["./parts.py:calculator"]
instruction: You are careful. Use the calculator for every number that you need.
limits: {{turns: 10, tokens: 100000, seconds: 300}}
reward: agentloop.rewards.verify:Exact
serve: {{consent: ask}}
"""
PARTS = '''\
"""A tool."""


async def calculator(expression: str) -> str:
    """Calculate."""
    return "42"
'''
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "calculator", "description": "Calculate.",
            "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
        },
    }
]  # fmt: skip


@asynccontextmanager
async def served(url: str, folder: Path) -> AsyncIterator[tuple[str, str, Archive]]:
    """Address, token and log of a workflow whose model is the mock."""
    (folder / "workflow.yaml").write_text(WORKFLOW.format(url=url))
    (folder / "parts.py").write_text(PARTS)
    (folder / "tasks.jsonl").write_text('{"prompt": "1 + 1?", "expected": "2"}\n')
    space = Workspace.find(Path(__file__).resolve().parents[1])
    loaded = load(str(folder / "workflow.yaml"), space)
    with Archive(folder) as archive:
        options = Options(run="bench", seed=0, workspace=space, home=folder, live=True)
        async with (
            assemble(loaded, archive, options) as kit,
            Service(
                kit.bench, loaded.spec.serve, idle=IDLE, say=lambda _: None, tell=lambda *_: None
            ) as service,
            Front(service) as front,
        ):  # fmt: skip
            yield front.base_url(), front.token, archive


class Client:
    """The same calls to whoever answers."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, *, store: bool) -> None:
        self.session, self.url, self.store = session, f"{base_url}/chat/completions", store

    async def ask(self, messages: list[Any], tools: list[Any] | None) -> Any:
        """One reply's message."""
        body: dict[str, Any] = {"model": "mock", "messages": messages, "store": self.store}
        if tools:
            body["tools"] = tools
        async with self.session.post(self.url, json=body) as response:
            said = await response.json()
            assert response.status == 200, said
            return said["choices"][0]["message"]

    async def talk(self, number: int, turns: int, *, tools: bool) -> None:
        """A conversation in which the client runs the tools, or one request."""
        messages: list[Any] = [{"role": "user", "content": f"What is {number} times {number}?"}]
        for _ in range(turns):
            reply = await self.ask(messages, TOOLS if tools else None)
            messages.append(reply)
            for call in reply.get("tool_calls") or ():
                answer = {"role": "tool", "tool_call_id": call["id"], "content": "42"}
                messages.append(answer)
        assert "42" in reply["content"], reply


async def many(client: Client, numbers: Any, turns: int, *, tools: bool) -> None:
    """All of them, some at a time."""

    async def work() -> None:
        for number in numbers:
            await client.talk(number, turns, tools=tools)

    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


async def measured(who: str, url: str, requests: int, turns: int) -> dict[str, float]:
    """`who` is `straight`, or `agent` or `tools` with ` logged` behind it or not."""
    straight, tools = who == "straight", not who.startswith("agent")
    own = 1 if who.startswith("agent") else turns  # the agent makes its turns behind one request
    store = who.endswith("logged")
    count = itertools.count()
    with tempfile.TemporaryDirectory() as name:
        async with served(url, Path(name)) as (base_url, token, archive):
            head = {} if straight else {"Authorization": f"Bearer {token}"}
            async with aiohttp.ClientSession(headers=head) as session:
                client = Client(session, url if straight else base_url, store=store)

                async def go(n: int) -> None:
                    await many(client, itertools.islice(count, n), own, tools=tools)
                    if not straight and tools:
                        await asyncio.sleep(2 * IDLE)  # until they are over, and in the log

                await go(WARM)
                with spent() as took:
                    await go(requests)
            logged = len(archive.log.chosen(Query(kinds=("episode",), purpose="serve")))
            assert logged == (WARM + requests if store and not straight else 0), logged
    return {"cpu_ms": 1000 * took.cpu / requests, "per_second": requests / took.wall}


def main() -> None:
    """Measure, print."""
    os.environ.pop("OPENAI_API_KEY", None)
    who, url, requests, turns = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    began = time.monotonic()
    found = asyncio.run(measured(who, url, requests, turns))
    print(json.dumps({**found, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
