"""A loopback HTTP server whose path names the rollout: `/r/<name>/v1/chat/completions`.

In: calls of agents, in OpenAI's chat format. Out: what the model lent to that rollout replies.
Whoever runs the rollout opens its name with a `ports.Model` and closes it at the end; recording,
limits and budgets are that model's, not the gateway's.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from typing import Self
from urllib.parse import quote

from aiohttp import web

from agentloop.errors import UsageError
from agentloop.gateway.http import MAX_BODY, Refused, guard, listen, models_response, reply
from agentloop.gateway.protocol import parse
from agentloop.ports import Model
from agentloop.records import Completion, Endpoint, Request

_OVER = 1000
"""Names of rollouts that ended last: whose program still calls is told that it is over."""
_ENDING = 0.2
"""Seconds for calls under way when it stops: their rollouts are over."""


class Session:
    """One rollout whose agent calls from outside."""

    def __init__(self, name: str, model: Model, served: str = "agentloop") -> None:
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


class Gateway:
    """The server; use it as an async context. Sessions belong to the loop that it runs on."""

    def __init__(self, *, port: int = 0) -> None:
        """`port` 0 is any free one."""
        self.token = secrets.token_urlsafe(24)
        self._port = port
        self._sessions: dict[str, Session] = {}
        self._over: deque[str] = deque(maxlen=_OVER)
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[guard(self.token)], client_max_size=MAX_BODY)
        app.add_routes(
            [
                web.get("/r/{name}/v1/models", self._models),
                web.post("/r/{name}/v1/chat/completions", self._chat),
            ]
        )
        self._runner = await listen(app, "127.0.0.1", self._port, ending=_ENDING)
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sessions.clear()
        if self._runner is not None:
            await self._runner.cleanup()

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
        self._sessions[name] = Session(name, model, served)
        return self._sessions[name]

    def close(self, name: str) -> None:
        """Refuse calls of rollout `name` from now on; idempotent."""
        if self._sessions.pop(name, None) is not None:
            self._over.append(name)

    async def _models(self, http: web.Request) -> web.Response:
        return models_response(self._known(http).served)

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        ask = parse(await http.read())
        session = self._known(http)
        label = f"chatcmpl-{session.name}-{session.calls}"
        return await reply(http, ask, await session.complete(ask.request), label)

    def _known(self, http: web.Request) -> Session:
        name = http.match_info["name"]
        session = self._sessions.get(name)
        if session is not None:
            return session
        if name in self._over:
            raise Refused(410, f"the rollout `{name}` is over", "rollout_over")
        raise Refused(404, f"there is no rollout `{name}`", "not_found")
