"""`agentlightning` on the conversation of `benchmarks.rollouts`: URL, N, IN_FLIGHT as arguments.

Its `Trainer` with the default tracer, which records the token ids that the engine returns in each
call of the `openai` client (checked after the warm-up and at the end), and its default strategy:
runners are processes that send their spans to a store in memory. The other way to token ids, its
LLM proxy, puts litellm's between agent and engine on top of that. Each runner makes one rollout at
a time; there are as many as keep one core busy, and they look for work ten times a second instead
of every 5 s. Out comes one line of JSON; the CPU is that of all its processes.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from importlib.metadata import version
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing here leaves the machine
os.environ["AGENTOPS_LOGGING_TO_FILE"] = "False"  # else `agentops.log` in the working directory

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
RUNNERS, TURNS = 16, 6
URL, COUNT = sys.argv[1], int(sys.argv[2])
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
    for _ in range(TURNS):
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
        await self.check_ids(await self.rollouts(4 * RUNNERS))
        wall, cpu = time.perf_counter(), cpu_seconds()
        done = await self.rollouts(COUNT)
        spent, took = cpu_seconds() - cpu, time.perf_counter() - wall
        await self.check_ids(done)
        print(json.dumps({
            "cpu_ms": 1000 * spent / COUNT, "per_second": COUNT / took, "in_flight": RUNNERS,
            "version": version("agentlightning"),
            "setup": f"Trainer, {RUNNERS} runners, AgentOpsTracer, store in memory; token ids and "
            "log-probs of every turn",
        }), flush=True)  # fmt: skip

    async def check_ids(self, done: list[str]) -> None:
        """The store has the ids of all six prompts and replies of every rollout."""
        store = self.get_store()
        for rollout in done:
            spans = await store.query_spans(rollout_id=rollout, attempt_id="latest")
            for name in ("prompt_token_ids", "response_token_ids", "logprobs.content"):
                kept = sum(name in span.attributes for span in spans)
                assert kept == TURNS, f"{name} in {kept} of {len(spans)} spans of {rollout}"

    async def rollouts(self, count: int) -> list[str]:
        """Their ids, once all have succeeded."""
        store = self.get_store()
        ids = []
        for number in range(count):
            task = f"What is {number} times {number + 1}?"
            ids.append((await store.enqueue_rollout(input=task, mode="train")).rollout_id)
        for rollout in ids:  # one thread waits for each that is waited for: so, one at a time
            ended = await store.wait_for_rollouts(rollout_ids=[rollout], timeout=120)
            assert ended and ended[0].status == "succeeded", f"{rollout}: {ended}"
        return ids


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


def free_port() -> int:
    """For the store's server."""
    with socket.create_server(("localhost", 0)) as found:
        return int(found.getsockname()[1])


if __name__ == "__main__":
    if os.getpgid(0) != os.getpid():
        os.setpgid(0, 0)
    busy = {"type": "agentlightning.LitAgentRunner", "poll_interval": 0.1, "interval_jitter": 0.05}
    trainer = agl.Trainer(
        algorithm=Measure(), n_runners=RUNNERS, runner=busy, port=free_port()
    )  # fmt: skip
    trainer.fit(agent)
