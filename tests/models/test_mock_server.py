"""The mock behind the benchmarks plays an agent's model, counts, and ends with its parent."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
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
