"""`agentlightning` on the conversation of `benchmarks.rollouts`: URL, N, IN_FLIGHT as arguments.

Its `Trainer` with the default tracer, which is to record the token ids that the engine returns in
each call of the `openai` client (how many it did is in the row), and its default strategy: runners
are processes that talk to a store in memory. As many runners as a machine of this size bears, since
each makes one rollout at a time. Out comes one line of JSON; the CPU is that of all its processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from importlib.metadata import version
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing here leaves the machine

import agentlightning as agl
from openai import AsyncOpenAI

SYSTEM = "You are careful. Use the calculator for every number that you need."
TOOL = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Calculate.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
    },
}
RUNNERS = 16
URL, COUNT, IN_FLIGHT = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
CLIENT: list[AsyncOpenAI] = []


@agl.rollout
async def agent(task: str, llm: agl.LLM) -> float:
    """Six turns, five of them with a call of the tool."""
    if not CLIENT:
        CLIENT.append(AsyncOpenAI(base_url=URL, api_key="mock"))
    messages: list[Any] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": task},
    ]
    for _ in range(6):
        reply = await CLIENT[0].chat.completions.create(
            model="mock", messages=messages, tools=[TOOL], logprobs=True,  # type: ignore[list-item]
            extra_body={"return_token_ids": True},
        )  # fmt: skip
        message = reply.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            break
        for call in message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "42"})
    return 1.0


class Measure(agl.Algorithm):
    """Enqueues rollouts and waits for their end."""

    async def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
        """Warm up, measure, check the ids, print."""
        store = self.get_store()
        await store.add_resources({"llm": agl.LLM(endpoint=URL, model="mock")})
        await self.rollouts(4 * RUNNERS)
        wall, cpu = time.perf_counter(), cpu_seconds()
        done = await self.rollouts(COUNT)
        spent, took = cpu_seconds() - cpu, time.perf_counter() - wall
        spans = await store.query_spans(rollout_id=done[-1], attempt_id="latest")
        kept = sum("response_token_ids" in span.attributes for span in spans)
        print(json.dumps({
            "cpu_ms": 1000 * spent / COUNT, "per_second": COUNT / took,
            "version": version("agentlightning"),
            "setup": f"Trainer, {RUNNERS} runners, AgentOpsTracer, store in memory; "
            f"{len(spans)} spans a rollout, {kept} of 6 calls with token ids",
        }), flush=True)  # fmt: skip

    async def rollouts(self, count: int) -> list[str]:
        """Their ids, once all have succeeded."""
        store = self.get_store()
        ids = []
        for number in range(count):
            task = f"What is {number} times {number + 1}?"
            ids.append((await store.enqueue_rollout(input=task, mode="train")).rollout_id)
        while True:
            ended = await store.wait_for_rollouts(rollout_ids=ids, timeout=0.2)
            if len(ended) == count:
                assert all(one.status == "succeeded" for one in ended), ended[0]
                return ids
            await asyncio.sleep(0.05)


def cpu_seconds() -> float:
    """Of this process group, by the kernel's accounts."""
    ticks, group = os.sysconf("SC_CLK_TCK"), os.getpgid(0)
    total = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            total += int(fields[11]) + int(fields[12])
    return total / ticks


if __name__ == "__main__":
    os.setpgid(0, 0)
    agl.Trainer(algorithm=Measure(), n_runners=RUNNERS).fit(agent)
