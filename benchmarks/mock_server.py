"""An OpenAI-compatible server on the loopback that costs next to nothing, for benchmarks.

In: `POST /v1/chat/completions`. Out: a reply made beforehand, after `--latency-ms`. With `--turns`
it plays an agent's model: it counts the assistant messages in the request and calls `--tool` until
the last turn, which is text. With `--ids` a reply carries so many token ids and log-probs when the
request asks for them (`return_token_ids`), as vLLM gives them, and the turns of a conversation
continue each other exactly. `POST /inference/v1/generate`, vLLM's ids in and ids out, answers with
what `PUT /sampled` (`{"marker": id, "replies": [ids, ...]}`) set: as many replies on as `marker`
stands in the prompt, since only the caller knows its tokenizer. `GET /count` says how many
completions were answered and how much CPU that took. It ends with its parent process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from typing import Any

PROMPT = 64
"""Token ids of a first prompt, with `--ids`."""
TOOL_RESULT = 16
"""Token ids that a tool's answer and the next reply's header add, with `--ids`."""


class Replies:
    """The n-th reply of a conversation, as the bytes of a whole HTTP response."""

    def __init__(self, *, turns: int, tool: str, arguments: str, ids: int) -> None:
        self.turns, self.tool, self.arguments, self.ids = turns, tool, arguments, ids
        self._made: dict[tuple[int, bool], bytes] = {}
        self._marker = -1
        self._sampled: list[bytes] = []

    def to(self, request: bytes) -> bytes:
        """The response to the body of a chat request."""
        turn = request.count(b'"role":"assistant"') + request.count(b'"role": "assistant"')
        asked = turn, b'"return_token_ids"' in request
        made = self._made.get(asked)
        if made is None:
            made = self._made[asked] = response(self._body(*asked))
        return made

    def sample(self, given: bytes) -> bytes:
        """Take note of what to answer to prompts of token ids."""
        said = json.loads(given)
        self._marker, replies = int(said["marker"]), said["replies"]
        self._sampled = [
            response({
                "request_id": f"generate-{turn:08d}", "prompt_logprobs": None,
                "choices": [{"index": 0, "token_ids": ids, "logprobs": logprobs(ids),
                             "finish_reason": "stop"}],
            })
            for turn, ids in enumerate(replies)
        ]  # fmt: skip
        return response({"replies": len(replies)})

    def sampled_after(self, request: bytes) -> bytes:
        """The response to a prompt of token ids."""
        return self._sampled[json.loads(request)["token_ids"].count(self._marker)]

    def _body(self, turn: int, with_ids: bool) -> dict[str, Any]:
        begin = PROMPT + turn * (self.ids + TOOL_RESULT)
        completion = self.ids or 24
        choice: dict[str, Any] = {"index": 0, **self._message(turn), "logprobs": None}
        body = {
            "id": f"chatcmpl-{turn:08d}",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "mock",
            "choices": [choice],
            "usage": {
                "prompt_tokens": begin,
                "completion_tokens": completion,
                "total_tokens": begin + completion,
            },
        }
        if self.ids and with_ids:
            sampled = [token(at) for at in range(begin, begin + self.ids)]
            body["prompt_token_ids"] = [token(at) for at in range(begin)]
            choice["token_ids"], choice["logprobs"] = sampled, logprobs(sampled)
        return body

    def _message(self, turn: int) -> dict[str, Any]:
        if turn + 1 < self.turns:
            call = {
                "id": f"call_{turn}",
                "type": "function",
                "function": {"name": self.tool, "arguments": self.arguments},
            }
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
            return {"message": message, "finish_reason": "tool_calls"}
        text = "The answer is 42, because every number before it was tried and found wanting."
        return {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}


def token(at: int) -> int:
    """The id at one place of the only conversation there is."""
    return (at * 7919 + 104_729) % 50_000


def logprobs(ids: list[int]) -> dict[str, Any]:
    """As vLLM writes them where tokens are named by their ids."""
    return {
        "content": [
            {"token": f"token_id:{one}", "logprob": -one / 50_000, "bytes": None,
             "top_logprobs": []}
            for one in ids
        ]
    }  # fmt: skip


def response(body: dict[str, Any]) -> bytes:
    """A whole HTTP response with status 200."""
    text = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n"
    return head.encode() + b"\r\n" + text


class Connection(asyncio.Protocol):
    """One keep-alive connection: whole requests in, prepared bytes out."""

    def __init__(self, server: Server) -> None:
        self.server, self.buffer = server, bytearray()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.buffer[:end]).lower()
            _, found, rest = head.partition(b"content-length:")
            size = int(rest.split(b"\r\n", 1)[0]) if found else 0
            total = end + 4 + size
            if len(self.buffer) < total:
                return
            body = bytes(self.buffer[end + 4 : total])
            del self.buffer[:total]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path.endswith(b"/chat/completions"):
            self.server.calls += 1
            self._later(self.server.latency, self.server.replies.to(body))
        elif path.endswith(b"/inference/v1/generate"):
            self.server.calls += 1
            self._later(self.server.latency, self.server.replies.sampled_after(body))
        elif path.endswith(b"/sampled"):
            self._later(0.0, self.server.replies.sample(body))
        elif path.endswith(b"/models"):
            self._later(0.0, response({"object": "list", "data": [{"id": "mock"}]}))
        else:
            said = {"calls": self.server.calls, "cpu_seconds": time.process_time()}
            self._later(0.0, response(said))
        if b"connection: close" in head and self.transport is not None:
            self.server.loop.call_later(self.server.latency, self.transport.close)

    def _later(self, seconds: float, data: bytes) -> None:
        if seconds:
            self.server.loop.call_later(seconds, self._write, data)
        else:
            self._write(data)

    def _write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)


class Server:
    """What the connections share."""

    def __init__(self, replies: Replies, latency: float) -> None:
        self.replies, self.latency, self.calls = replies, latency, 0
        self.loop = asyncio.get_running_loop()


async def serve(given: argparse.Namespace) -> None:
    """Listen on a free port of the loopback, say which as one line of JSON, and stay as long as
    the parent process does."""
    parent = os.getppid()
    replies = Replies(turns=given.turns, tool=given.tool, arguments=given.arguments, ids=given.ids)
    state = Server(replies, given.latency_ms / 1000)
    listening = await state.loop.create_server(
        lambda: Connection(state), "127.0.0.1", given.port, backlog=4096
    )
    port = listening.sockets[0].getsockname()[1]
    print(json.dumps({"port": port, "base_url": f"http://127.0.0.1:{port}/v1"}), flush=True)
    while os.getppid() == parent:
        await asyncio.sleep(0.5)


def main() -> None:
    """Parse the options, serve."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mock_server")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--turns", type=int, default=1, help="replies until one has no tool call")
    parser.add_argument("--tool", default="calculator", help="the tool that it calls")
    parser.add_argument("--arguments", default='{"expression": "6*7"}', help="JSON text")
    parser.add_argument("--ids", type=int, default=0, help="token ids a reply; 0: none")
    parser.add_argument("--core", type=int, default=-1, help="the processor core to run on")
    given = parser.parse_args()
    if sys.platform == "linux" and given.core >= 0:
        os.sched_setaffinity(0, {given.core})
    asyncio.run(serve(given))


if __name__ == "__main__":
    main()
