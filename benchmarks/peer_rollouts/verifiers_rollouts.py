"""`verifiers` on the conversation of `benchmarks.rollouts`: URL, N and IN_FLIGHT as arguments.

One agent with an interception server of its own, and a harness that makes its calls from this very
process with `aiohttp`, which costs less than the shipped ones, each a process per rollout. It runs
with the evaluation client, which relays and keeps no token ids: the training client renders and
parses every turn on top of that and needs a vLLM engine, so its cost is at least the one seen here.
Nothing is written to disk. One line of JSON comes out.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from importlib.metadata import version
from typing import Any

import aiohttp
import verifiers.v1 as vf
from verifiers.v1.configs.client import EvalClientConfig
from verifiers.v1.configs.harness import HarnessConfig
from verifiers.v1.harness import Harness
from verifiers.v1.runtimes import ProgramResult, SubprocessConfig

SYSTEM = "You are careful. Use the calculator for every number that you need."
TOOL = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Calculate.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
    },
}


class Here(Harness[HarnessConfig]):
    """Six turns, five of them with a call of the tool, against the interception endpoint."""

    APPENDS_SYSTEM_PROMPT = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False
    http: aiohttp.ClientSession

    async def launch(self, *positional: Any, **named: Any) -> ProgramResult:
        """One rollout."""
        order = ("ctx", "trace", "runtime", "endpoint", "secret", "mcp_urls", "data")
        given = dict(zip(order, positional, strict=False)) | named
        ctx, endpoint, secret = given["ctx"], given["endpoint"], given["secret"]
        system, prompt = self.resolve_prompt(given["data"])
        messages: list[Any] = [
            {"role": "system", "content": system},
            {"role": "user", "content": prompt},
        ]
        for _turn in range(6):
            async with self.http.post(
                f"{endpoint.rstrip('/')}/chat/completions",
                json={"model": ctx.model, "messages": messages, "tools": [TOOL]},
                headers={"Authorization": f"Bearer {secret}"},
            ) as response:
                reply = (await response.json())["choices"][0]["message"]
            messages.append(reply)
            for call in reply.get("tool_calls") or ():
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": "42"})
        return ProgramResult(0, "", "")


async def rollouts(agent: vf.Agent, count: int, in_flight: int) -> None:
    """Roll out; every rollout must have its six turns."""
    waiting = iter(range(count))

    async def work() -> None:
        for n in waiting:
            data = vf.TaskData(idx=n, prompt=f"What is {n} times {n + 1}?", system_prompt=SYSTEM)
            trace = await agent.run(vf.Task(data))
            assert trace.num_turns == 6 and not trace.last_error, trace.last_error

    await asyncio.gather(*(work() for _ in range(in_flight)))


async def main() -> None:
    """Warm up, measure, print."""
    os.environ["MOCK_KEY"] = "mock"
    url, count, in_flight = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    agent = vf.make_agent(
        vf.AgentConfig(
            model="mock", runtime=SubprocessConfig(), harness={"id": "null"},
            client=EvalClientConfig(base_url=url, api_key_var="MOCK_KEY"),
        )
    )  # fmt: skip
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        agent.harness = Here(agent.harness.config)
        agent.harness.http = session
        async with agent:
            await rollouts(agent, 16, 16)
            wall, cpu = time.perf_counter(), time.process_time()
            await rollouts(agent, count, in_flight)
            spent, took = time.process_time() - cpu, time.perf_counter() - wall
    print(json.dumps({
        "cpu_ms": 1000 * spent / count, "per_second": count / took,
        "version": version("verifiers"),
        "setup": "v1 agent, in-process harness, evaluation client (no token ids)",
    }))  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
