"""The mock behind the benchmarks plays an agent's model, counts, and ends with its parent."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import Request as Request_
from urllib.request import urlopen

from agentloop.models.openai_compatible import OpenAICompatible
from agentloop.records import Completion, Message, Request
from benchmarks.harness import mock_server

ORPHAN = """
import subprocess, sys
server = subprocess.Popen([sys.executable, "-m", "benchmarks.mock_server"], stdout=subprocess.PIPE)
print(server.stdout.readline().decode(), end="")
"""


def test_an_agent_of_three_turns_continues_exactly() -> None:
    async def agent(base_url: str) -> list[Completion]:
        model = OpenAICompatible(base_url, model="m", extensions=True)
        messages, replies = [Message(role="user", content="go")], []
        for turn in range(3):
            replies.append(await model.complete(Request(messages=tuple(messages))))
            messages.append(replies[-1].message)
            messages.append(Message(role="tool", content="42", tool_call_id=f"call_{turn}"))
        await model.close()
        return replies

    with mock_server(turns=3, ids=5, tool="add", latency_ms=20) as base_url:
        began = time.monotonic()
        first, second, last = asyncio.run(agent(base_url))
        assert time.monotonic() - began >= 0.06
        with urlopen(base_url.replace("/v1", "/count"), timeout=5) as answer:
            assert json.load(answer)["calls"] == 3
    assert [call.name for call in first.message.tool_calls] == ["add"]
    assert second.message.tool_calls and last.message.content and not last.message.tool_calls
    assert first.prompt_ids and first.completion_ids and second.prompt_ids
    before = first.prompt_ids + first.completion_ids
    assert second.prompt_ids[: len(before)] == before
    assert len(first.completion_ids) == len(first.logprobs or ()) == 5


def post(url: str, body: object, method: str = "POST") -> dict[str, Any]:
    request = Request_(url, data=json.dumps(body).encode(), method=method)
    with urlopen(request, timeout=5) as answer:
        return dict(json.load(answer))


def test_token_ids_are_for_those_that_ask() -> None:
    messages = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "I went"}]
    with mock_server(turns=3, ids=5) as base_url:
        chat = f"{base_url}/chat/completions"
        plain = post(chat, {"messages": messages})
        asked = post(chat, {"messages": messages, "return_token_ids": True})
    assert "prompt_token_ids" not in plain and not plain["choices"][0]["logprobs"]
    assert len(asked["choices"][0]["token_ids"]) == 5 and asked["prompt_token_ids"]
    assert asked["choices"][0]["message"] == plain["choices"][0]["message"]
    assert asked["usage"] == plain["usage"]


def test_ids_in_and_ids_out() -> None:
    with mock_server() as base_url:
        sampled = {"marker": 7, "replies": [[1, 2], [3]]}
        assert post(f"{base_url}/sampled", sampled, "PUT") == {"replies": 2}
        generate = base_url.replace("/v1", "/inference/v1/generate")
        first = post(generate, {"token_ids": [5, 6]})["choices"][0]
        second = post(generate, {"token_ids": [5, 6, 1, 2, 7, 77]})["choices"][0]
    assert (first["token_ids"], second["token_ids"]) == ([1, 2], [3])
    assert [one["token"] for one in first["logprobs"]["content"]] == ["token_id:1", "token_id:2"]


def test_it_ends_with_its_parent() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN], cwd=root, capture_output=True, check=True, timeout=20
    )
    url = json.loads(done.stdout)["base_url"] + "/models"
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            urlopen(url, timeout=1).close()
        except OSError:
            return
        time.sleep(0.1)
    raise AssertionError("the server is still there")
