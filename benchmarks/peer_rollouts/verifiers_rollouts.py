"""`verifiers` on the conversation of `benchmarks.rollouts`: URL, N and IN_FLIGHT as arguments.

One agent with the training client, its way to token ids: it renders a turn to ids (by Qwen3's
renderer, which extends the turn before it instead of rendering all again), sends them to the
engine's `/inference/v1/generate` and parses the sampled ids, so that a trace has the ids and
log-probs of every node; that is checked in the warm-up. The tokenizer has Qwen3's markers and is
trained here on Python's own documentation, as nothing is downloaded. The harness makes its calls
from this very process with `aiohttp`, which costs less than the shipped ones, each a process per
rollout. One line of JSON comes out.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pydoc_data.topics import topics
from typing import Any
from urllib.request import Request, urlopen

import aiohttp
import verifiers.v1 as vf
from renderers.configs import Qwen3RendererConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from verifiers.v1.configs.client import TrainClientConfig
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


MARKS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>",
    "<tool_response>", "</tool_response>", "<think>", "</think>",
]  # fmt: skip
CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "6*7"}}\n</tool_call>'
TEXT = "The answer is 42, because every number before it was tried and found wanting."
TURNS, WARM = 6, 16


def write_tokenizer(folder: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE as Qwen's, of 8,192 tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        topics.values(),
        trainers.BpeTrainer(vocab_size=8192, initial_alphabet=alphabet, show_progress=False),
    )
    bpe.add_special_tokens(MARKS)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False)
    tokenizer.save_pretrained(folder)
    return tokenizer


def tell_engine(url: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """The mock plays the engine: it gets the ids to sample, one reply a tool result."""
    replies = [f"{CALL}<|im_end|>"] * (TURNS - 1) + [f"{TEXT}<|im_end|>"]
    sampled = {
        "marker": tokenizer.convert_tokens_to_ids("<tool_response>"),
        "replies": [tokenizer.encode(reply, add_special_tokens=False) for reply in replies],
    }
    order = Request(f"{url}/sampled", data=json.dumps(sampled).encode(), method="PUT")
    urlopen(order, timeout=10).close()


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
        for _turn in range(TURNS):
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
    """Roll out; every rollout must have its six turns, and their ids in the warm-up."""
    waiting = iter(range(count))

    async def work() -> None:
        for n in waiting:
            data = vf.TaskData(idx=n, prompt=f"What is {n} times {n + 1}?", system_prompt=SYSTEM)
            trace = await agent.run(vf.Task(data))
            assert trace.num_turns == TURNS and not trace.last_error, trace.last_error
            if count == WARM:
                check_ids(trace)

    await asyncio.gather(*(work() for _ in range(in_flight)))


def check_ids(trace: vf.Trace) -> None:
    """One branch, whose every node has its token ids, the sampled ones their log-probs."""
    [branch] = trace.branches
    sampled = [node for node in branch.nodes if node.sampled]
    assert len(sampled) == TURNS and all(node.token_ids for node in branch.nodes)
    assert all(len(node.logprobs) == sum(node.mask) > 0 for node in sampled)


async def main(url: str, count: int, in_flight: int, folder: str) -> None:
    """Warm up, measure, print."""
    os.environ["MOCK_KEY"] = "mock"
    tell_engine(url, write_tokenizer(folder))
    client = TrainClientConfig(
        base_url=url, api_key_var="MOCK_KEY", renderer=Qwen3RendererConfig(),
        renderer_model_name=folder,
    )  # fmt: skip
    agent = vf.make_agent(
        vf.AgentConfig(
            model="mock", runtime=SubprocessConfig(), harness={"id": "null"}, client=client
        )
    )
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        agent.harness = Here(agent.harness.config)
        agent.harness.http = session
        async with agent:
            await rollouts(agent, WARM, WARM)
            wall, cpu = time.perf_counter(), time.process_time()
            await rollouts(agent, count, in_flight)
            spent, took = time.process_time() - cpu, time.perf_counter() - wall
    print(json.dumps({
        "cpu_ms": 1000 * spent / count, "per_second": count / took,
        "version": version("verifiers"),
        "setup": "v1 agent, in-process harness, training client, Qwen3's renderer; token ids and "
        "log-probs of every turn",
    }))  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), place))
