"""The endpoint for clients: OpenAI's chat format, feedback, health; on loopback, behind a token.

In: calls over HTTP. Out: what a `Desk` answers. Only the routes below exist:

    POST   /v1/chat/completions            the agent's answer, or a turn of the client's own agent
    GET    /v1/models                      the one there is
    POST   /r/NAME/v1/chat/completions     a turn of the client's own agent, in session NAME
    GET    /r/NAME/v1/models
    DELETE /r/NAME                         the end of session NAME, with a score if there is one
    POST   /feedback                       a reward for what was logged before
    GET    /health                         counts and versions, for anybody on this machine

Who runs the agent, logs and swaps bundles is the desk; this module knows HTTP alone.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any, Protocol, Self
from urllib.parse import quote

from aiohttp import web

from agentloop.errors import UsageError
from agentloop.gateway.http import MAX_BODY, guard, listen, loopback, models_response, reply
from agentloop.gateway.protocol import Ask, parse
from agentloop.records import Completion, Json, record

STORE = "x-agentloop-store"
"""Request header: whether the conversation may be logged (`true` or `false`)."""
CONVERSATION = "x-agentloop-conversation"
"""Request header: a name that the client has for the conversation, so that it need not be known by
its messages."""
BUNDLE = "x-agentloop-bundle"
"""Reply header: the bundle that answered."""
ENDING = 3.0
"""Seconds that calls under way have to end in when the server stops."""
_LONGEST_NAME = 200


@record
class Call:
    """One request of a client."""

    ask: Ask
    session: str | None = None
    """The name in the path: its agent runs elsewhere."""
    conversation: str | None = None
    """What the client calls the conversation."""
    store: bool | None = None
    """Whether it may be logged; `None` when the client did not say."""


@record
class Answer:
    """What the desk gives back."""

    completion: Completion
    id: str
    """By which feedback names it."""
    bundle: str


class Desk(Protocol):
    """Who answers."""

    @property
    def model(self) -> str:
        """The model's name towards clients."""
        ...

    async def answer(self, call: Call) -> Answer:
        """One reply; what it raises becomes an error (see `http.refusal`)."""
        ...

    async def end(self, session: str, score: float | None) -> dict[str, Json]:
        """End a session that a client named; what became of it."""
        ...

    async def feedback(self, id: str, score: float, comment: str) -> dict[str, Json]:
        """Take note of a reward for a logged conversation."""
        ...

    def health(self) -> dict[str, Json]:
        """Counts and versions; nothing secret."""
        ...


class Front:
    """The server; use it as an async context. At its end calls under way have `ENDING` seconds."""

    def __init__(self, desk: Desk, *, host: str = "127.0.0.1", port: int = 0) -> None:
        """`port` 0 is any free one. Raises `UsageError` for a host that is not loopback."""
        self.token = secrets.token_urlsafe(24)
        self._desk, self._host, self._port = desk, loopback(host), port
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(
            middlewares=[guard(self.token, public=("/health",))], client_max_size=MAX_BODY
        )
        app.add_routes(
            [
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._chat),
                web.get("/r/{name}/v1/models", self._models),
                web.post("/r/{name}/v1/chat/completions", self._chat),
                web.delete("/r/{name}", self._end),
                web.post("/feedback", self._feedback),
                web.get("/health", self._health),
            ]
        )
        self._runner = await listen(app, self._host, self._port, ending=ENDING)
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def base_url(self, session: str | None = None) -> str:
        """What a client has to be told, for all or for one session."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        path = "" if session is None else f"/r/{quote(session, safe='')}"
        return f"http://{host}:{self._port}{path}/v1"

    async def _models(self, http: web.Request) -> web.Response:
        return models_response(self._desk.model)

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        ask = parse(await http.read())
        call = Call(
            ask=ask, session=_name(http.match_info.get("name"), "the session's name"),
            conversation=_name(http.headers.get(CONVERSATION), f"`{CONVERSATION}`"),
            store=_store(http.headers.get(STORE), ask.store),
        )  # fmt: skip
        answer = await self._desk.answer(call)
        return await reply(
            http, ask, answer.completion, answer.id,
            fingerprint=answer.bundle, headers={BUNDLE: answer.bundle},
        )  # fmt: skip

    async def _end(self, http: web.Request) -> web.Response:
        body = _body(await http.read(), '{"score": 1}', empty=True)
        score = None if body.get("score") is None else _score(body)
        return web.json_response(await self._desk.end(http.match_info["name"], score))

    async def _feedback(self, http: web.Request) -> web.Response:
        body = _body(await http.read(), '{"id": "chatcmpl-...", "score": 1}')
        name, comment = body.get("id"), body.get("comment", "")
        if not isinstance(name, str) or not isinstance(comment, str):
            raise UsageError("`id` (of a reply) must be a text, and so must `comment`")
        unknown = body.keys() - {"id", "score", "comment"}
        if unknown:
            raise UsageError(f"`{min(unknown)}` is not known here; give id, score and comment")
        return web.json_response(await self._desk.feedback(name, _score(body), comment))

    async def _health(self, http: web.Request) -> web.Response:
        return web.json_response(self._desk.health())


def _name(given: str | None, what: str) -> str | None:
    if given is not None and not (given.isprintable() and 0 < len(given) <= _LONGEST_NAME):
        raise UsageError(f"{what} must have 1 to {_LONGEST_NAME} printable characters")
    return given


def _store(header: str | None, field: bool | None) -> bool | None:
    """Either may agree; neither must refuse."""
    said = {"true": True, "false": False, None: None}
    if header is not None and header.lower() not in said:
        raise UsageError(f"`{STORE}` is `{header[:20]}`; give true or false")
    given = {said[header and header.lower()], field} - {None}
    return all(given) if given else None


def _body(data: bytes, example: str, *, empty: bool = False) -> Mapping[str, Any]:
    if empty and not data.strip():
        return {}
    try:
        value = json.loads(data)
    except ValueError as error:
        raise UsageError(f"the body must be a JSON object such as {example}") from error
    if not isinstance(value, dict):
        raise UsageError(f"the body must be a JSON object such as {example}")
    return value


def _score(body: Mapping[str, Any]) -> float:
    value = body.get("score")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UsageError("`score` must be a number from 0 to 1")
    return float(value)
