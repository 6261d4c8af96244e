"""A real vLLM: policies swapped under load, each reply from exactly one of them; life and death."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from statistics import mean

import pytest
from local_server import (
    SYSTEM,
    TURNS,
    Recomputed,
    Watched,
    attempts,
    differences,
    make_adapter,
    roll_out,
    smollm2,
    vllm_python,
)

from agentloop.datasets.rows import sft_rows
from agentloop.errors import ModelError, ServerError
from agentloop.models.openai_compatible import OpenAICompatible
from agentloop.records import Message, Request, Sampling
from agentloop.serving.vllm import VllmServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

FIRST, SECOND = "policy-1", "policy-2"
SAMPLING = Sampling(temperature=1.0, max_tokens=24, seed=5)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: make_adapter(smollm2(), folder / name, seed)
        for seed, name in enumerate((FIRST, SECOND))
    }


def group_of(pid):
    """Processes of the session that `pid` leads."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            if int(fields[3]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def test_an_adapter_is_swapped_under_load(adapters, tmp_path):
    watched = {name: Watched(None) for name in (None, FIRST, SECOND)}

    async def go():
        server = VllmServer(smollm2(), tmp_path, python=vllm_python())
        endpoint = await server.start()
        pid = server.pid
        try:
            assert await server.healthy()
            await server.load_policy(FIRST, adapters[FIRST])

            def start(n, policy):
                orders = attempts(n, policy, SAMPLING, f"run-{policy}")
                return asyncio.create_task(roll_out(endpoint, orders, watched[policy], 16))

            base, old = start(50, None), start(25, FIRST)
            while len(watched[FIRST].replies) < 20:
                await asyncio.sleep(0.05)
            await server.load_policy(SECOND, adapters[SECOND])
            await server.load_policy(SECOND, adapters[SECOND])
            new = start(25, SECOND)
            assert not old.done() and not base.done()
            old_episodes = await old
            await server.unload_policy(FIRST)
            assert not new.done()
            await refused(endpoint, FIRST)
            return pid, old_episodes, await new, await base
        finally:
            await server.stop()

    pid, *runs = asyncio.run(go())
    assert not group_of(pid)
    episodes = [episode for run in runs for episode in run]
    assert len(episodes) == 100 and not [e.failure for e in episodes if e.failure]
    for policy, model in watched.items():
        assert len(model.replies) == TURNS * (50 if policy is None else 25)
        assert {(done.model, done.policy) for done in model.replies} == {(policy or "base", policy)}
        assert sum(done.usage.cached_tokens > 0 for done in model.replies) > len(model.replies) / 2

    trainer = Recomputed(smollm2(), adapters)
    rows = sft_rows(episodes, system=SYSTEM)
    assert len(rows) == 100  # no conversation was forked: each went on with its own ids
    for policy in watched:
        mine = [row for row in rows if row.policy == policy]
        assert len(mine) == (50 if policy is None else 25)
        off = differences(trainer, mine[:12], policy, [1.0] * 12)
        print(f"{policy or 'base'}: {len(off)} tokens, mean {mean(off):.2e}, most {max(off):.2e}")
        assert mean(off) <= 1e-3 and max(off) <= 0.05  # the label is who really said it


async def refused(endpoint, policy):
    """An unloaded policy is an error, never answered by the base model."""
    model = OpenAICompatible(endpoint.base_url, endpoint.token, extensions=True)
    try:
        request = Request(messages=(Message(role="user", content="hi"),), policy=policy)
        with pytest.raises(ModelError, match="404"):
            await model.complete(request)
    finally:
        await model.close()


def test_a_model_that_cannot_be_served_is_one_sentence(tmp_path):
    (tmp_path / "model").mkdir()
    server = VllmServer(tmp_path / "model", tmp_path, python=vllm_python())
    with pytest.raises(ServerError, match="vLLM server did not start"):
        asyncio.run(server.start())
    assert server.pid is None and os.path.getsize(server.log_file) > 0
