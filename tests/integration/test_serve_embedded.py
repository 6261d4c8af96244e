"""The stock clients, Python and Node, against a served local model; swaps of real adapters."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from local_server import make_adapter, smollm2

from agentloop.files import sha256_of
from agentloop.gateway.front import Front
from agentloop.lanes.bench import Bench
from agentloop.live.serving import Service
from agentloop.records import Bundle, Instruction, TrainingResult
from agentloop.store.archive import Archive
from agentloop.store.query import Query
from agentloop.workflows.assemble import Options, assemble
from agentloop.workflows.load import load
from agentloop.workspace import Workspace

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

AGENTS = Path(__file__).parents[1] / "gateway" / "agents"
WORKFLOW = """\
title: Served
model: "embedded:{model}"
tasks: {{use: agentloop.tasks.files:Jsonl, path: ./tasks.jsonl}}
instruction: You are a helpful assistant.
tools: [python]
limits: {{turns: 4, tokens: 400, seconds: 120}}
decoding: {{max_tokens: 16}}
reward: agentloop.rewards.verify:Exact
serve: {{consent: always}}
"""
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "add", "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
    },
}  # fmt: skip
HELLO: Any = [{"role": "user", "content": "Say hello."}]


@dataclass
class Live:
    """A served local model."""

    archive: Archive
    bench: Bench
    service: Service
    front: Front


@asynccontextmanager
async def live(root: Path) -> AsyncIterator[Live]:
    folder = root / "workflows" / "small"
    folder.mkdir(parents=True)
    (folder / "workflow.yaml").write_text(WORKFLOW.format(model=smollm2()))
    (folder / "tasks.jsonl").write_text('{"prompt": "1 + 1?", "expected": "2"}\n')
    space = Workspace.find(root)
    loaded = load(str(folder), space)
    home = root / "home"
    home.mkdir()
    with Archive(home) as archive:
        options = Options(run="run-live", seed=0, workspace=space, home=home, live=True)
        async with (
            assemble(loaded, archive, options) as kit,
            Service(
                kit.bench, loaded.spec.serve, idle=2, say=lambda _: None, tell=lambda *_: None
            ) as service,
            Front(service) as front,
        ):  # fmt: skip
            yield Live(archive, kit.bench, service, front)


def test_the_stock_clients_of_python_and_node(tmp_path: Path) -> None:
    async def main() -> None:
        async with live(tmp_path) as one:
            sdk = openai.AsyncOpenAI(base_url=one.front.base_url(), api_key=one.front.token)
            ask = sdk.chat.completions.create
            champion = one.service.health()["champion"]
            for options in ({}, {"tools": [TOOL]}):
                whole = await ask(model="x", messages=HELLO, **options)  # type: ignore[call-overload]
                assert whole.choices[0].message.content and whole.system_fingerprint == champion
                text = ""
                async for chunk in await ask(
                    model="x", messages=HELLO, stream=True,
                    stream_options={"include_usage": True}, **options,
                ):  # type: ignore[call-overload]  # fmt: skip
                    text += chunk.choices[0].delta.content or "" if chunk.choices else ""
                assert text == whole.choices[0].message.content  # greedy
                assert chunk.usage.completion_tokens > 0
            await sdk.close()
            clients = ["plain.mjs"]
            if (AGENTS / "node_modules" / "openai").is_dir():
                clients.append("sdk.mjs")  # whole with a tool, then streamed
            if shutil.which("node") is None:
                clients = []
            for client in clients:
                environment = {
                    **os.environ, "OPENAI_BASE_URL": one.front.base_url(),
                    "OPENAI_API_KEY": one.front.token, "OPENAI_MODEL": "small",
                }  # fmt: skip
                child = await asyncio.create_subprocess_exec(
                    "node", str(AGENTS / client), env=environment,
                    stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                )  # fmt: skip
                said, _ = await child.communicate(b"Say hello.")
                assert child.returncode == 0 and said.strip()
            while one.service._outsiders._open:
                await asyncio.sleep(0.1)
            episodes = one.archive.episodes(Query(purpose="serve"))
            assert len(episodes) >= 4 and all(e.failure is None for e in episodes)
            sampled = [n for e in episodes for t in e.trajectories for n in t.nodes if n.sampled]
            assert all(n.token_ids and n.logprobs for n in sampled)

    asyncio.run(main())


def test_adapters_are_swapped_and_rolled_back_under_requests(tmp_path: Path) -> None:
    """A reply names the bundle whose adapter made it: its text is what that adapter says alone."""

    async def main() -> None:
        async with live(tmp_path) as one:
            sdk = openai.AsyncOpenAI(base_url=one.front.base_url(), api_key=one.front.token)
            first = str(one.service.health()["champion"])
            text = one.archive.put(Instruction(text="You are a helpful assistant."))
            bundles = [first]
            for seed in range(2):
                folder = make_adapter(smollm2(), tmp_path / f"adapter-{seed}", seed)
                made = TrainingResult(
                    adapter=str(folder), sha256=sha256_of(folder / "adapter_model.safetensors")
                )
                name = one.archive.put(one.bench.policies.admit(made, base=str(smollm2())))
                bundles.append(one.archive.put(Bundle(instruction=text, policies={"agent": name})))

            async def say() -> tuple[str, str]:
                reply = await sdk.chat.completions.create(model="x", messages=HELLO)
                return str(reply.system_fingerprint), str(reply.choices[0].message.content)

            async def served(bundle: str) -> float:
                began = time.monotonic()
                while one.service.health()["champion"] != bundle:
                    await asyncio.sleep(0.02)
                return time.monotonic() - began

            seconds, alone = [], {first: (await say())[1]}
            for bundle in bundles[1:]:
                one.archive.point("small/champion", bundle, reason="test", scope="small")
                seconds.append(await served(bundle))
                alone[bundle] = (await say())[1]
            assert len(set(alone.values())) == 3
            found: list[tuple[str, str]] = []

            async def client() -> None:
                while len(found) < 60:
                    found.append(await say())

            clients = asyncio.gather(*(client() for _ in range(4)))
            for _ in range(2):
                await asyncio.sleep(1)
                one.archive.rollback("small/champion")
                seconds.append(await served(one.archive.alias("small/champion").bundle))  # type: ignore[union-attr]
            await clients
            await sdk.close()
            assert all(alone[bundle] == text for bundle, text in found)
            assert one.service.health()["failed"] == 0 and one.service.health()["champion"] == first
            assert max(seconds) <= 5, seconds
            print(json.dumps({"swap_seconds": seconds, "replies": len(found)}))

    asyncio.run(main())
