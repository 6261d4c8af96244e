"""Chat completions by exact tokens, inside vLLM's server: an ASGI middleware around its routes.

In: a chat request whose assistant messages may carry `token_ids`. Out: vLLM's answer to a plain
completion of exactly the tokens that our one chat rendering gives (the trainer's), shaped as a chat
answer. So a conversation goes on with the ids that were sampled, and text can forge no turn. What
needs vLLM's own chat route (streams, tools, templates, images) goes there unchanged.

Runs in vLLM's environment: nothing of agentloop that needs more than the standard library.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from agentloop.trajectories.chat_format import Tokenizer, end_of_turn, render_chat, text_of

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Body = dict[str, Any]

MAX_BODY = 16 * 2**20
_CHAT, _PLAIN = "/v1/chat/completions", "/v1/completions"
_THEIRS = (
    "stream", "tools", "chat_template", "chat_template_kwargs", "continue_final_message",
    "documents",
)  # fmt: skip
_NOT_PLAIN = frozenset(
    {"messages", "logprobs", "top_logprobs", "max_completion_tokens", "add_generation_prompt",
     "tool_choice", "parallel_tool_calls", "stream_options", *_THEIRS}
)  # fmt: skip
_MAX_TOKENS = 256
"""When none are asked for, as the embedded engine."""


class ExactChat:
    """The middleware that vLLM is started with; it also asks for the token on every route but
    `/health` (vLLM itself guards `/v1` alone)."""

    def __init__(
        self, app: App, *, tokenizer: Tokenizer | None = None, token: str | None = None
    ) -> None:
        self.app = app
        self.token = os.environ["VLLM_API_KEY"] if token is None else token
        self.tokenizer = tokenizer or _load(os.environ["AGENTLOOP_VLLM_MODEL"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        kind = scope["type"]
        if kind == "lifespan" or scope.get("path") == "/health":
            return await self.app(scope, receive, send)
        if not self._known(scope):
            if kind == "http":
                return await _refuse(send, 401, "a valid bearer token is needed")
            return await send({"type": "websocket.close", "code": 1008})
        if kind != "http" or scope["method"] != "POST" or scope["path"] != _CHAT:
            return await self.app(scope, receive, send)
        await self._chat(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        return hmac.compare_digest(given, b"Bearer " + self.token.encode())

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await _read(receive)
        if raw is None:
            return await _refuse(send, 413, "the body is larger than 16 MiB")
        try:
            order = plain_request(self.tokenizer, json.loads(raw))
        except (ValueError, TypeError) as problem:
            return await _refuse(send, 400, str(problem))
        if order is None:
            return await self.app(scope, _again(raw, receive), send)
        inner = dict(scope, path=_PLAIN, raw_path=_PLAIN.encode())
        body = json.dumps(order.body).encode()
        inner["headers"] = _sized(scope["headers"], body)
        answer = _Answer()
        await self.app(inner, _again(body, receive), answer.take)
        data = bytes(answer.data)
        if answer.status == 200:
            data = json.dumps(chat_response(json.loads(data), order)).encode()
        start = {"type": "http.response.start", "status": answer.status}
        await send({**start, "headers": _sized(answer.headers, data)})
        await send({"type": "http.response.body", "body": data})


@dataclass(frozen=True, slots=True)
class Order:
    """A plain completion; `drift` is whether sampled ids had to be re-tokenised, `alternatives`
    how many other tokens were asked for at each position."""

    body: Body
    drift: bool
    alternatives: int


def plain_request(tokenizer: Tokenizer, body: object) -> Order | None:
    """The plain completion that a chat request means; `None` when it is one for vLLM's own route.
    Raises `ValueError` with the field that is wrong."""
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise ValueError("`messages` must be a list of objects")
    if any(body.get(field) for field in _THEIRS) or not tokenizer.chat_template:
        return None
    try:
        flat = [{**one, "content": text_of(one.get("content"))} for one in messages]
    except ValueError:
        return None  # an image, say
    rendered = render_chat(tokenizer, flat, body.get("add_generation_prompt") is not False)
    plain = {key: value for key, value in body.items() if key not in _NOT_PLAIN}
    limits = (body.get("max_completion_tokens"), body.get("max_tokens"), _MAX_TOKENS)
    alternatives = body.get("top_logprobs") or 0
    plain |= {"prompt": rendered.ids, "max_tokens": next(n for n in limits if n is not None)}
    if body.get("logprobs"):
        plain["logprobs"] = alternatives
    end = end_of_turn(tokenizer)
    if end is not None and not body.get("ignore_eos"):
        plain["stop_token_ids"] = [*(body.get("stop_token_ids") or ()), end]
    return Order(plain, rendered.drift, alternatives)


def chat_response(answer: Body, order: Order) -> Body:
    """vLLM's answer to `order.body` as the answer to the chat request."""
    choices = answer["choices"]
    out = {key: value for key, value in answer.items() if key != "choices"}
    out["object"] = "chat.completion"
    out["id"] = str(answer.get("id", "")).replace("cmpl-", "chatcmpl-", 1)
    out["prompt_token_ids"] = choices[0].get("prompt_token_ids")
    out["choices"] = [_choice(choice, order) for choice in choices]
    if order.drift:
        out["drift"] = True
    return out


def _choice(choice: Body, order: Order) -> Body:
    given = choice.get("logprobs")
    kept = {key: choice.get(key) for key in ("index", "finish_reason", "stop_reason", "token_ids")}
    return {
        **kept,
        "message": {"role": "assistant", "content": choice["text"]},
        "logprobs": {"content": _logprobs(given, order)} if given else None,
    }


def _logprobs(given: Body, order: Order) -> list[Body]:
    others: Iterable[Body | None] = given.get("top_logprobs") or ()
    rows: list[Body] = [
        {"token": token, "logprob": value, "bytes": None, "top_logprobs": []}
        for token, value in zip(given["tokens"], given["token_logprobs"], strict=True)
    ]
    if order.alternatives:
        for row, other in zip(rows, others, strict=True):
            row["top_logprobs"] = [
                {"token": token, "logprob": value, "bytes": None}
                for token, value in (other or {}).items()
            ]
    return rows


class _Answer:
    """What the inner application sent."""

    def __init__(self) -> None:
        self.status = 500
        self.headers: list[tuple[bytes, bytes]] = []
        self.data = bytearray()

    async def take(self, event: Event) -> None:
        """An ASGI `send`."""
        if event["type"] == "http.response.start":
            self.status, self.headers = event["status"], list(event.get("headers", ()))
        elif event["type"] == "http.response.body":
            self.data += event.get("body", b"")


async def _read(receive: Receive) -> bytes | None:
    """The whole body; `None` when it is too long."""
    data = bytearray()
    while True:
        event = await receive()
        data += event.get("body", b"")
        if len(data) > MAX_BODY:
            return None
        if event["type"] != "http.request" or not event.get("more_body"):
            return bytes(data)


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` and then what comes next, which is the client's leaving."""
    given = False

    async def replay() -> Event:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _sized(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    return [*kept, (b"content-length", str(len(body)).encode())]


async def _refuse(send: Send, status: int, message: str) -> None:
    kinds = {401: "authentication_error"}
    error = {"message": message, "type": kinds.get(status, "invalid_request_error")}
    body = json.dumps({"error": error}).encode()
    headers = _sized([(b"content-type", b"application/json")], body)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _load(folder: str) -> Tokenizer:
    from transformers import AutoTokenizer

    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer
