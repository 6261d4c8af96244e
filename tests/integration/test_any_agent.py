"""Agents of three kinds, unchanged, through the recording endpoint to a real engine: every episode
becomes a training row with the engine's own tokens."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from local_server import smollm2, vllm_python

from agentloop.datasets.rows import sft_rows
from agentloop.gateway.program import Program, resolve_command
from agentloop.gateway.server import Gateway
from agentloop.graphs.program import program_graph
from agentloop.graphs.run import Runner
from agentloop.models.openai_compatible import OpenAICompatible
from agentloop.records import Attempt, Episode, Limits, Sampling, Task
from agentloop.serving.launch import EmbeddedServer, LocalServer
from agentloop.serving.vllm import VllmServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

AGENTS = Path(__file__).parents[1] / "gateway" / "agents"
COMMANDS = {
    "langgraph": (sys.executable, "./langgraph_agent.py"),
    "openai": (sys.executable, "./sdk_agent.py"),
    "node": ("node", "./plain.mjs"),
    "node-openai": ("node", "./sdk.mjs"),
}
SYSTEM = "You are a helpful assistant."


def orders(agent: str) -> list[Attempt]:
    return [
        Attempt(
            task=Task(id=f"{agent}-{n}", prompt=f"Say one sentence about the number {n}."),
            bundle="b", system=SYSTEM, purpose="collect", run=agent,
            sampling=Sampling(temperature=0.8, max_tokens=24, seed=n),
        )
        for n in range(3)
    ]  # fmt: skip


async def roll_out(server: LocalServer, agents: list[str]) -> dict[str, list[Episode]]:
    endpoint = await server.start()
    model = OpenAICompatible(
        endpoint.base_url, endpoint.token, model=endpoint.model, extensions=True, native_tools=False
    )
    try:
        made = {}
        async with Gateway() as gateway:
            for agent in agents:
                program = Program(resolve_command(COMMANDS[agent], AGENTS), gateway)
                runner = Runner(program_graph(program.drive), native_tools=False)
                made[agent] = await runner.run(
                    orders(agent), model=model, limits=Limits(seconds=240)
                )
        return made
    finally:
        await model.close()
        await server.stop()


@pytest.mark.parametrize("engine", ["embedded", "vllm"])
def test_every_kind_of_agent_gives_training_rows(engine: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    server = (
        EmbeddedServer(smollm2(), tmp_path)
        if engine == "embedded"
        else VllmServer(smollm2(), tmp_path, python=vllm_python())
    )
    agents = [
        name
        for name in COMMANDS
        if name != "node-openai" or (AGENTS / "node_modules" / "openai").is_dir()
    ]
    made = asyncio.run(roll_out(server, agents))
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2(), local_files_only=True)
    for agent, episodes in made.items():
        for episode in episodes:
            assert episode.failure is None, (agent, episode.failure)
            [row] = sft_rows([episode], system=SYSTEM)
            [trajectory] = episode.trajectories
            sampled = [node for node in trajectory.nodes if node.sampled]
            assert len(sampled) == episode.usage.calls and sum(row.sampled) == len(sampled)
            assert trajectory.drift == 0
            for node in sampled:
                text = tokenizer.decode(node.token_ids, skip_special_tokens=True)
                assert text == node.message.content
                assert node.logprobs is not None and len(node.logprobs) == len(node.token_ids)
        if agent != "langgraph":  # it goes on only when the model calls its tool
            assert all(episode.usage.calls == 2 for episode in episodes)
