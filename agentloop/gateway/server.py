"""A loopback HTTP server whose path names the rollout: `/r/<name>/v1/chat/completions`.

In: calls of agents, in OpenAI's chat format. Out: what the model lent to that rollout replies.
Whoever runs the rollout opens its name with a `ports.Model` and closes it at the end; recording,
limits and budgets are that model's, not the gateway's. The decision worth knowing: a status is
sent only once the reply is there, also for a stream, so that every error is a plain JSON error;
and no error invites the client to try again, because retries are the transport's.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from agentloop.errors import AgentLoopError, BudgetReached, LimitReached, ModelError, UsageError
from agentloop.gateway.protocol import body_of, chunks_of, parse
from agentloop.ports import Model
from agentloop.records import Completion, Endpoint, Request

MAX_BODY = 16 * 2**20
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error",
    410: "not_found_error", 413: "invalid_request_error", 429: "rate_limit_error",
}  # fmt: skip
log = logging.getLogger(__name__)


class Refused(Exception):
    """A call that gets an error instead of a reply."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Session:
    """One rollout at the gateway."""

    def __init__(self, name: str, model: Model, served: str) -> None:
        """`served` is the model's name towards the agent."""
        self.name, self.served = name, served
        self.reply: Completion | None = None
        """The last one."""
        self.error: Exception | None = None
        """Why the last call failed; `None` when it did not."""
        self.calls = 0
        self.in_flight = 0
        self.used = time.monotonic()
        """When the last call began or ended."""
        self._model = model

    async def complete(self, request: Request) -> Completion:
        """One reply; raises what the model raises."""
        self.calls += 1
        self.in_flight += 1
        self.used = time.monotonic()
        try:
            # A task of its own: the rollout's end cancels that and leaves the HTTP call to answer.
            self.reply = await asyncio.ensure_future(self._model.complete(request))
        except Exception as error:
            self.error = error
            raise
        finally:
            self.in_flight -= 1
            self.used = time.monotonic()
        self.error = None
        return self.reply


Admit = Callable[[str, Request], Awaitable[Session]]
"""Opens a session for a name that is not open, on its first call."""
End = Callable[[str, float | None], Awaitable[dict[str, object]]]
"""Ends a session: its name, and a score in [0, 1] if one was given; what to tell the client."""


class Gateway:
    """The server; use it as an async context. Sessions belong to the loop that it runs on."""

    def __init__(
        self, *, port: int = 0, admit: Admit | None = None, end: End | None = None
    ) -> None:
        """`port` 0 is any free one. Without `admit` a name that is not open is refused; `end`
        serves `DELETE /r/<name>`."""
        self.token = secrets.token_urlsafe(24)
        self._port, self._admit, self._end = port, admit, end
        self._sessions: dict[str, Session] = {}
        self._over: set[str] = set()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._guard()], client_max_size=MAX_BODY)
        app.add_routes(
            [
                web.get("/r/{name}/v1/models", self._models),
                web.post("/r/{name}/v1/chat/completions", self._chat),
                web.delete("/r/{name}", self._delete),
            ]
        )
        # With `handler_cancellation` a client that goes away ends its call.
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.2, handler_cancellation=True
        )
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, "127.0.0.1", self._port).start()
        except OSError as error:
            await self._stack.aclose()
            raise UsageError(
                f"port {self._port} cannot be used ({error.strerror}); give another, or 0 for any"
            ) from error
        self._port = runner.addresses[0][1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._sessions.clear()
        await self._stack.aclose()

    def endpoint(self, name: str) -> Endpoint:
        """Where the agent of rollout `name` finds its model."""
        base = f"http://127.0.0.1:{self._port}/r/{quote(name, safe='')}/v1"
        session = self._sessions.get(name)
        return Endpoint(
            base_url=base, token=self.token, model=session.served if session else "agentloop"
        )

    def open(self, name: str, model: Model, *, served: str = "agentloop") -> Session:
        """Answer calls of rollout `name` with `model` from now on. Raises `UsageError` when the
        name is open already."""
        if name in self._sessions:
            raise UsageError(f"the rollout `{name}` runs already; give this one another name")
        self._over.discard(name)
        self._sessions[name] = Session(name, model, served)
        return self._sessions[name]

    def close(self, name: str) -> None:
        """Refuse calls of rollout `name` from now on; idempotent."""
        if self._sessions.pop(name, None) is not None and self._admit is None:
            self._over.add(name)

    # --- routes ---------------------------------------------------------------------------------

    async def _models(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if self._admit is None:
            self._known(name)
        entry = {"id": self.endpoint(name).model, "object": "model", "created": 0,
                 "owned_by": "agentloop"}  # fmt: skip
        return web.json_response({"object": "list", "data": [entry]})

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        ask = parse(await http.read())
        name = http.match_info["name"]
        session = self._sessions.get(name)
        if session is None and self._admit is not None:
            session = await self._admit(name, ask.request)
        session = session or self._known(name)
        label = f"chatcmpl-{session.name}-{session.calls}"
        completion = await session.complete(ask.request)
        if not ask.stream:
            return web.json_response(body_of(completion, label))
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await response.prepare(http)
        for chunk in chunks_of(completion, label, usage=ask.usage):
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _delete(self, http: web.Request) -> web.Response:
        name = http.match_info["name"]
        self._known(name)
        if self._end is None:
            raise Refused(404, "the end of this rollout is not the agent's to decide", "not_found")
        return web.json_response(await self._end(name, _score(await http.read())))

    def _known(self, name: str) -> Session:
        session = self._sessions.get(name)
        if session is not None:
            return session
        if name in self._over:
            raise Refused(410, f"the rollout `{name}` is over", "rollout_over")
        raise Refused(404, f"there is no rollout `{name}`", "not_found")

    def _guard(self) -> Middleware:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._answer(request, handler)

        return guard

    async def _answer(self, http: web.Request, handler: Handler) -> web.StreamResponse:
        """Loopback names and the token only; every failure is a JSON error."""
        try:
            self._check(http)
            return await handler(http)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the client went away, or the server stops
            return _error(410, "the rollout is over", "rollout_over")
        except ConnectionResetError:
            raise  # the client went away in the middle of a stream
        except web.HTTPException as problem:
            large = f"the body is larger than {MAX_BODY >> 20} MiB"
            text = large if problem.status == 413 else problem.reason
            return _error(problem.status, text, "bad_request")
        except Exception as problem:
            refused = refusal(problem)
            if refused.status == 500:
                log.exception("a call failed")
            return _error(refused.status, str(refused), refused.code)

    def _check(self, http: web.Request) -> None:
        if host_of(http.headers.get("Host", "")) not in _LOOPBACK:
            raise Refused(400, "only loopback host names are served", "bad_host")
        given = http.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode()):
            raise Refused(401, "a valid bearer token is needed (OPENAI_API_KEY)", "invalid_api_key")


def host_of(header: str) -> str:
    """The host in a `Host` header, without its port; empty when there is none."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def refusal(problem: Exception) -> Refused:
    """Status, text and code that an agent is told of a failed call."""
    match problem:
        case Refused():
            return problem
        case BudgetReached():
            return Refused(429, str(problem), "insufficient_quota")
        case LimitReached(reason="cancelled"):
            return Refused(410, str(problem), "rollout_over")
        case LimitReached():
            return Refused(429, str(problem), problem.reason)
        case ModelError():
            if problem.reason == "context_overflow":
                return Refused(400, str(problem), "context_length_exceeded")
            return Refused(503, str(problem), problem.reason)
        case UsageError():
            return Refused(400, str(problem), "bad_request")
        case AgentLoopError():
            return Refused(503, str(problem), "unavailable")
    return Refused(500, "a fault in agentloop; its log says more", "internal_error")


def _error(status: int, message: str, code: str) -> web.Response:
    kind = _KINDS.get(status, "server_error")
    # OpenAI's clients retry 429 and 5xx by themselves unless they are told not to.
    return web.json_response(
        {"error": {"message": message, "type": kind, "param": None, "code": code}},
        status=status,
        headers={"x-should-retry": "false"},
    )


def _score(data: bytes) -> float | None:
    """The optional body of a session's end: `{"score": 0.0 to 1.0}`."""
    if not data.strip():
        return None
    try:
        value = json.loads(data).get("score")
    except (ValueError, AttributeError) as error:
        raise UsageError('the body must be a JSON object such as {"score": 1}') from error
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UsageError("`score` must be a number from 0 to 1")
    return float(value)
