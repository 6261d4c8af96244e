"""What the endpoints for agents and for clients share: who may come in, what an answer looks like.

In: calls over HTTP. Out: JSON, also for every failure, in OpenAI's shape. The decision worth
knowing: a status is sent only once the reply is there, also for a stream, so that every error is a
plain JSON error; and no error invites the client to try again, because retries are the transport's.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import traceback
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from agentloop.errors import AgentLoopError, BudgetReached, LimitReached, ModelError, UsageError
from agentloop.gateway.protocol import Ask, body_of, chunks_of
from agentloop.records import Completion

MAX_BODY = 16 * 2**20
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error",
    405: "invalid_request_error", 410: "not_found_error", 413: "invalid_request_error",
    429: "rate_limit_error",
}  # fmt: skip
log = logging.getLogger(__name__)


class Refused(Exception):
    """A call that gets an error instead of a reply."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def loopback(host: str) -> str:
    """The address to listen at. Raises `UsageError` for any but this machine's own."""
    if host == "localhost":  # whatever a hosts file makes of the name
        return "127.0.0.1"
    if host in ("127.0.0.1", "::1"):
        return host
    raise UsageError(
        f"`--host {host}` is not a loopback address; only 127.0.0.1, ::1 and localhost are served, "
        "put a proxy of your own in front to let others in"
    )


async def listen(app: web.Application, host: str, port: int, *, ending: float) -> web.AppRunner:
    """Serve `app`; its address is in `runner.addresses`, and `runner.cleanup()` gives calls under
    way `ending` seconds. Raises `UsageError` for a port that cannot be used."""
    # With `handler_cancellation` a client that goes away ends its call.
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True,
        shutdown_timeout=ending / 2,  # aiohttp waits so long twice
    )  # fmt: skip
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise UsageError(
            f"port {port} cannot be used ({error.strerror}); give another, or 0 for any"
        ) from error
    return runner


def guard(token: str, *, public: Collection[str] = ()) -> Middleware:
    """Loopback names and, except for the `public` paths, the token only; every failure is a JSON
    error."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            _check(request, None if request.path in public else token)
            return await handler(request)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the client went away, or the server stops
            return error_response(410, "the rollout is over", "rollout_over")
        except ConnectionResetError:
            raise  # the client went away in the middle of a stream
        except web.HTTPException as problem:
            large = f"the body is larger than {MAX_BODY >> 20} MiB"
            where = f"{request.method} {request.path}: {problem.reason}"
            text = large if problem.status == 413 else where
            return error_response(problem.status, text, "bad_request")
        except Exception as problem:
            refused = refusal(problem)
            if refused.status == 500:
                log.error("a call failed: %s", _where(problem))
            return error_response(refused.status, str(refused), refused.code)

    return guarded


def _where(problem: BaseException) -> str:
    """The kind of an error and the lines of code that it came through. Not its text, which may
    quote a conversation that nobody agreed to write down."""
    lines = traceback.format_tb(problem.__traceback__)
    return f"{type(problem).__name__}\n{''.join(lines)}"


def _check(http: web.Request, token: str | None) -> None:
    if host_of(http.headers.get("Host", "")) not in _LOOPBACK:
        raise Refused(400, "only loopback host names are served", "bad_host")
    given = http.headers.get("Authorization", "").removeprefix("Bearer ").encode("utf-8", "replace")
    if token is not None and not hmac.compare_digest(given, token.encode()):
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


def error_response(status: int, message: str, code: str) -> web.Response:
    """An error as OpenAI's clients read it."""
    kind = _KINDS.get(status, "server_error")
    # They retry 429 and 5xx by themselves unless they are told not to.
    return web.json_response(
        {"error": {"message": message, "type": kind, "param": None, "code": code}},
        status=status,
        headers={"x-should-retry": "false"},
    )


def models_response(name: str) -> web.Response:
    """The answer to `GET models`: the one there is."""
    entry = {"id": name, "object": "model", "created": 0, "owned_by": "agentloop"}
    return web.json_response({"object": "list", "data": [entry]})


async def reply(
    http: web.Request, ask: Ask, completion: Completion, label: str, *,
    fingerprint: str | None = None, headers: Mapping[str, str] | None = None,
) -> web.StreamResponse:  # fmt: skip
    """One reply, whole or as a stream, as it was asked for; `label` is its id, `fingerprint` what
    stands behind it."""
    if not ask.stream:
        body = body_of(completion, label, fingerprint=fingerprint)
        return web.json_response(body, headers=headers)
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream", "Cache-Control": "no-cache", **(headers or {}),
        }
    )  # fmt: skip
    await response.prepare(http)
    chunks = chunks_of(completion, label, usage=ask.usage, fingerprint=fingerprint)
    events = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
    await response.write(b"".join((*events, b"data: [DONE]\n\n")))
    await response.write_eof()
    return response
