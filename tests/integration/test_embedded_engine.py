"""The real thing: SmolLM2 in a server process, against transformers, and its life and death."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import aiohttp
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from agentloop.errors import MissingDependency, ServerError  # noqa: E402
from agentloop.serving.launch import EmbeddedServer  # noqa: E402
from agentloop.serving.weights import find_gguf, prepare_smollm2  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
SYSTEM = "You solve small sums. " + "Think step by step and answer with a number. " * 12


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    try:
        find_gguf()
    except MissingDependency as missing:
        pytest.skip(str(missing))
    target = tmp_path_factory.mktemp("models") / "smollm2"
    assert prepare_smollm2(target) == target == prepare_smollm2(target)
    assert sorted(p.name for p in target.parent.iterdir()) == ["smollm2"]
    return target


def ask(n, **more):
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{n} + {n}?"}]
    return {"messages": messages, "max_tokens": 8, "seed": n, "logprobs": True,
            "return_token_ids": True} | more  # fmt: skip


async def post(endpoint, body, path="/chat/completions"):
    headers = {"Authorization": f"Bearer {endpoint.token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(endpoint.base_url + path, json=body) as answer,
    ):
        return await answer.json()


def test_a_crowd_of_conversations_agrees_with_transformers(smollm2, tmp_path):
    async def go():
        server = EmbeddedServer(smollm2, tmp_path)
        endpoint = await server.start()
        assert await server.start() == endpoint
        first = await asyncio.gather(*(post(endpoint, ask(n)) for n in range(6)))
        turns = []
        for n, one in enumerate(first):
            said = {"role": "assistant", "content": "", "token_ids": one["choices"][0]["token_ids"]}
            messages = [*ask(n)["messages"], said, {"role": "user", "content": "Are you sure?"}]
            turns.append(post(endpoint, ask(n, messages=messages)))
        second = await asyncio.gather(*turns)
        started = time.monotonic()
        await server.stop()
        await server.stop()
        assert time.monotonic() - started < 5
        return first, second

    first, second = asyncio.run(go())
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    for one, two in zip(first, second, strict=True):
        start = one["prompt_token_ids"] + one["choices"][0]["token_ids"]
        assert two["prompt_token_ids"][: len(start)] == start
        assert two["usage"]["prompt_tokens_details"]["cached_tokens"] >= len(start) - 1
    for done in (*first[:2], *second[:2]):
        choice, prompt = done["choices"][0], done["prompt_token_ids"]
        with torch.no_grad():
            table = model(torch.tensor([prompt + choice["token_ids"]])).logits[0].log_softmax(-1)
        for index, token in enumerate(choice["token_ids"]):
            logprob = choice["logprobs"]["content"][index]["logprob"]
            assert logprob == pytest.approx(float(table[len(prompt) - 1 + index, token]), abs=1e-3)


def test_it_ends_with_its_parent_and_on_a_signal(smollm2, tmp_path):
    async def go():
        server = EmbeddedServer(smollm2, tmp_path)
        endpoint = await server.start()
        pid = server.pid
        work = asyncio.create_task(post(endpoint, ask(1, max_tokens=400, ignore_eos=True)))
        await asyncio.sleep(1)
        started = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        while server.pid is not None and time.monotonic() - started < 5:
            await asyncio.sleep(0.05)
        assert server.pid is None and time.monotonic() - started < 2
        with pytest.raises(aiohttp.ClientError):
            await work
        with pytest.raises(ServerError, match="start it first"):
            await server.load_policy("x", tmp_path)
        orphan = EmbeddedServer(smollm2, tmp_path / "b", options=["--parent-pid", "1"])
        await orphan.start()  # the later flag wins: its parent is not process 1
        await asyncio.sleep(2.5)
        assert orphan.pid is None

    asyncio.run(go())


def test_a_failed_start_is_one_sentence_with_the_log(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ServerError, match=r"did not start: .*no config\.json"):
        asyncio.run(EmbeddedServer(tmp_path / "model", tmp_path).start())
