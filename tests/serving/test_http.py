"""The wire: what a client sends and gets, and how each mistake is answered."""

from __future__ import annotations

import argparse
import asyncio
import io

import pytest

torch = pytest.importorskip("torch")

from aiohttp.test_utils import TestClient, TestServer  # noqa: E402

from agentloop.serving.batch import Limits  # noqa: E402
from agentloop.serving.embedded import MAX_BODY, Api, arguments  # noqa: E402
from agentloop.serving.engine import Engine, Options  # noqa: E402

TOKEN = "secret"
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def engine(model_dir):
    engine = Engine(
        model_dir,
        Options(
            name="tiny", limits=Limits(max_batch=8, cache_bytes=2**22, slot_tokens=64), gather_ms=1
        ),
    )
    yield engine
    engine.close()


@pytest.fixture
def call(engine):
    """`(path, body) -> (status, answer)`; without a body it is a GET."""

    def run(path, body=None, *, token=TOKEN, data=None):
        async def go():
            async with TestClient(TestServer(Api(engine).app(TOKEN))) as client:
                headers = {"Authorization": f"Bearer {token}"}
                method = "GET" if body is None and data is None else "POST"
                async with client.request(
                    method, path, json=body, data=data, headers=headers
                ) as answer:
                    return answer.status, await answer.json()

        return asyncio.run(go())

    return run


CHAT = "/v1/chat/completions"
BASE = {"messages": HI, "max_tokens": 8, "seed": 1, "ignore_eos": True}


def test_a_chat_carries_ids_and_logprobs(call, engine):
    status, answer = call(CHAT, {**BASE, "logprobs": True, "return_token_ids": True})
    choice = answer["choices"][0]
    assert status == 200 and answer["model"] == "tiny"
    assert len(choice["token_ids"]) == 8 == len(choice["logprobs"]["content"])
    assert all(entry["logprob"] <= 0 for entry in choice["logprobs"]["content"])
    assert answer["prompt_token_ids"] == engine.tokenizer.apply_chat_template(
        HI, add_generation_prompt=True, return_dict=False
    )
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(answer["prompt_token_ids"])
    assert usage["completion_tokens"] == 8
    again = call(CHAT, BASE)[1]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1
    assert "prompt_token_ids" not in again and again["choices"][0]["logprobs"] is None
    assert call(CHAT, {**BASE, "max_completion_tokens": None})[1]["usage"] == again["usage"]
    assert again["choices"][0]["message"]["content"] == choice["message"]["content"]


def test_a_conversation_continues_with_its_own_ids(call):
    asked = {**BASE, "return_token_ids": True}
    one = call(CHAT, asked)[1]
    said = {"role": "assistant", "content": one["choices"][0]["message"]["content"]}
    said["token_ids"] = one["choices"][0]["token_ids"]
    more = [*HI, said, {"role": "tool", "content": "42"}]
    two = call(CHAT, {**asked, "messages": more})[1]
    start = one["prompt_token_ids"] + said["token_ids"]
    assert two["prompt_token_ids"][: len(start)] == start
    assert two["usage"]["prompt_tokens_details"]["cached_tokens"] >= len(start) - 1


def test_completions_take_ids_and_score_them(call):
    ids = list(range(20, 60))
    body = {"prompt": ids, "max_tokens": 5, "ignore_eos": True, "seed": 2}
    made = call("/v1/completions", {**body, "logprobs": 1, "return_token_ids": True})[1]
    choice = made["choices"][0]
    whole = ids + choice["token_ids"]
    scored = call("/v1/completions", {"prompt": whole, "max_tokens": 0, "prompt_logprobs": True})[1]
    given = scored["choices"][0]["prompt_logprobs"]
    assert given[0] is None and len(given) == len(whole)
    assert given[len(ids) :] == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-4)


def test_models_and_adapters(call, adapters):
    assert call("/health") == (200, {"status": "ok"})
    body = {"lora_name": "red", "lora_path": str(adapters["red"])}
    assert call("/v1/load_lora_adapter", body)[0] == 200
    names = [entry["id"] for entry in call("/v1/models")[1]["data"]]
    assert names == ["tiny", "red"]
    assert call(CHAT, {**BASE, "model": "red"})[1]["model"] == "red"
    assert call("/v1/unload_lora_adapter", {"lora_name": "red"})[0] == 200
    status, answer = call(CHAT, {**BASE, "model": "red"})
    assert status == 404 and "no model `red`" in answer["error"]["message"]
    status, answer = call("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "nowhere"})
    assert status == 400 and "adapter_config.json" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"messages": "hi"}, "`messages`"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text"),
        ({"max_tokens": 5000}, "context overflow"),
        ({"max_tokens": 0}, "`max_tokens`"),
        ({"temperature": -1}, "`temperature`"),
        ({"temperature": 1e-40}, "`temperature`"),
        ({"messages": [{"role": "user", "content": "a\ud800"}]}, "`messages`"),
        ({"temperature": "hot"}, "`temperature`"),
        ({"top_p": 0}, "`top_p`"),
        ({"top_k": 1.5}, "`top_k`"),
        ({"seed": "x"}, "`seed`"),
        ({"stop": [""]}, "`stop`"),
        ({"n": 2}, "`n`"),
        ({"stream": True}, "`stream`"),
        ({"frequency_penalty": 0.5}, "`frequency_penalty`"),
        ({"tools": [{"type": "function"}]}, "`tools`"),
        ({"beam_width": 3}, "`beam_width`"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(call, change, says):
    status, answer = call(CHAT, {**BASE, **change})
    assert status == 400 and says in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


def test_wrong_tokens_bodies_and_places(call):
    status, answer = call(CHAT, BASE, token="wrong")
    assert status == 401 and answer["error"]["type"] == "authentication_error"
    assert call("/v1/models", token="")[0] == 401
    assert call("/v1/nowhere")[0] == 404
    assert call(CHAT, data=b"{")[0] == 400
    assert call(CHAT, data=b"[]")[0] == 400
    status, answer = call(CHAT, data=io.BytesIO(b" " * (MAX_BODY + 1)))
    assert status == 413 and "16 MiB" in answer["error"]["message"]


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "example.org"])
def test_only_loopback_is_served(host, capsys):
    with pytest.raises(SystemExit):
        arguments(["--model", "x", "--host", host])
    assert "not a loopback address" in capsys.readouterr().err
    assert isinstance(arguments(["--model", "x", "--host", "::1"]), argparse.Namespace)
