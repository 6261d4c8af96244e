"""A loopback server that speaks OpenAI's chat-completions format, scripted by a function.

    with FakeEndpoint(lambda payload: "hello") as fake:           # in a thread of its own
        ...  fake.base_url, fake.calls, fake.payloads
    async with FakeEndpoint(reply) as fake: ...                    # in the running loop

The function takes the request's JSON and returns a str (the reply's text), a dict (the whole JSON
body, see `chat`), an int (an error with that status) or a `Reply` (any fault). A list of these is
given out in order, its last one forever.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Reply:
    """An answer in full: how a fault is described."""

    body: dict[str, Any] | str | bytes = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    """Seconds before the headers."""
    cut: bool = False
    """Drop the connection instead of answering."""


Answer = str | dict[str, Any] | int | Reply
Script = Callable[[dict[str, Any]], Answer]


def chat(
    content: str | None = "",
    *,
    tools: Sequence[tuple[str, dict[str, Any] | str]] = (),
    model: str = "fake",
    usage: tuple[int, int] | None = (7, 3),
    finish: str | None = None,
    ids: tuple[list[int], list[int], list[float]] | None = None,
) -> dict[str, Any]:
    """The JSON body of a completion. `tools` are (name, arguments); `usage` (prompt, completion)
    tokens; `ids` (prompt ids, completion ids, log-probs) as vLLM gives them."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if tools:
        message["tool_calls"] = [
            {
                "id": f"call-{n}",
                "type": "function",
                "function": {
                    "name": name,
                    "arguments": given if isinstance(given, str) else json.dumps(given),
                },
            }
            for n, (name, given) in enumerate(tools)
        ]
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "finish_reason": finish or ("tool_calls" if tools else "stop"),
    }
    body: dict[str, Any] = {
        "id": "fake-1", "object": "chat.completion", "created": 0, "model": model,
        "choices": [choice],
    }  # fmt: skip
    if usage is not None:
        body["usage"] = {
            "prompt_tokens": usage[0], "completion_tokens": usage[1],
            "total_tokens": sum(usage),
        }  # fmt: skip
    if ids is not None:
        body["prompt_token_ids"], choice["token_ids"] = ids[0], ids[1]
        choice["logprobs"] = {"content": [{"token": "", "logprob": each} for each in ids[2]]}
    return body


class FakeEndpoint:
    """The server; `script` may be replaced while it runs. With a `key`, others get 401."""

    def __init__(
        self,
        script: Script | Answer | Sequence[Answer] = "ok",
        *,
        key: str | None = None,
        models: Sequence[str] = ("fake",),
    ) -> None:
        self.script, self.key, self.models = script, key, tuple(models)
        self.payloads: list[dict[str, Any]] = []
        """JSON bodies of the completions asked for, in order."""
        self.headers: list[dict[str, str]] = []
        self.listings = 0
        """How often the models were asked for."""
        self.base_url = ""
        self._runner: web.AppRunner | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def calls(self) -> int:
        """How many completions were asked for, whatever was answered."""
        return len(self.payloads)

    async def __aenter__(self) -> FakeEndpoint:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._completions)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.base_url = f"http://{host}:{port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def __enter__(self) -> FakeEndpoint:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self.__aenter__(), self._loop).result(10)

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None and self._thread is not None
        asyncio.run_coroutine_threadsafe(self.__aexit__(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _models(self, request: web.Request) -> web.StreamResponse:
        self.listings += 1
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return _error(401, "wrong key")
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.models]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        payload = await request.json()
        self.payloads.append(payload)
        self.headers.append(dict(request.headers))
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return _error(401, "wrong key")
        reply = self._answer(payload)
        if reply.delay:
            await asyncio.sleep(reply.delay)
        if reply.cut:
            assert request.transport is not None
            request.transport.abort()
        if isinstance(reply.body, dict):
            return web.json_response(reply.body, status=reply.status, headers=reply.headers)
        body = reply.body.encode() if isinstance(reply.body, str) else reply.body
        headers = {"Content-Type": "application/json", **reply.headers}
        return web.Response(body=body, status=reply.status, headers=headers)

    def _answer(self, payload: dict[str, Any]) -> Reply:
        answer = self.script
        if callable(answer):
            answer = answer(payload)
        elif isinstance(answer, Sequence) and not isinstance(answer, str):
            answer = answer[min(self.calls, len(answer)) - 1]
        if isinstance(answer, Reply):
            return answer
        if isinstance(answer, int):
            return Reply(_body(answer, f"status {answer}"), status=answer)
        if isinstance(answer, str):
            answer = chat(answer, model=str(payload.get("model", "fake")))
        return Reply(answer)


def _body(status: int, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "fake", "code": str(status)}}


def _error(status: int, message: str) -> web.Response:
    return web.json_response(_body(status, message), status=status)
