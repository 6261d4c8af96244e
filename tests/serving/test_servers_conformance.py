"""What `ports.Server` promises of adapters, asked of both servers."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from vllm_stand_in import interpreter

from agentloop.errors import ServerError
from agentloop.ports import Server
from agentloop.serving.launch import EmbeddedServer
from agentloop.serving.vllm import VllmServer


async def served(server):
    """Names that the process itself says it serves."""
    endpoint = await server.start()
    vllm = isinstance(server, VllmServer)
    path = endpoint.base_url.removesuffix("/v1") + "/health" if vllm else "/models"
    url = path if vllm else endpoint.base_url + path
    headers = {"Authorization": f"Bearer {endpoint.token}"}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        told = await answer.json(content_type=None)
    return set(told["loaded"] if vllm else (one["id"] for one in told["data"])) - {"base"}


async def rounds(server, adapters):
    """An online phase in small: each round's adapter is loaded and the one before let go."""
    assert isinstance(server, Server)
    await server.unload_policy("red")  # it does not even run
    await server.start()
    await server.unload_policy("red")
    for before, name in ((None, "red"), ("red", "blue"), ("blue", "red")):
        await server.load_policy(name, adapters[name])
        if before:
            await server.unload_policy(before)
        assert await served(server) == server.policies == {name}
    await asyncio.gather(server.unload_policy("red"), server.load_policy("blue", adapters["blue"]))
    await server.unload_policy("red")
    assert await served(server) == server.policies == {"blue"}
    await server.stop()
    await server.unload_policy("blue")
    assert not server.policies
    await server.start()
    assert await served(server) == server.policies == set()
    with pytest.raises(ServerError, match="gone"):
        await server.load_policy("gone", adapters["red"].parent / "gone")
    await server.unload_policy("gone")
    await server.stop()


def test_vllm(tmp_path):
    adapters = {name: tmp_path / name for name in ("red", "blue")}
    for name, folder in adapters.items():
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_text(name)
    server = VllmServer(tmp_path / "model", tmp_path, python=interpreter(tmp_path))
    asyncio.run(rounds(server, adapters))


@pytest.mark.integration  # two starts with torch
def test_embedded(model_dir, adapters, tmp_path):
    asyncio.run(rounds(EmbeddedServer(model_dir, tmp_path), adapters))
