"""A sandbox whose sessions are a function of the test: what was sent is kept."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from agentloop.records import Program, SandboxResult

Reply = Callable[[dict[str, Any]], Any]
"""A request -> an answer frame as JSON, or text as it stands; an exception is raised."""


class Scripted:
    """A `ports.Sandbox` with `ports.Sessions`."""

    def __init__(
        self, reply: Reply, starts: Callable[[str], Exception | None] = lambda code: None
    ) -> None:
        self.reply, self.starts = reply, starts
        self.sent: list[str] = []
        self.code, self.asked = "", 0
        """Of the session that was begun last."""
        self.seconds: list[float] = []
        self.closed = 0

    async def run(self, code: str) -> SandboxResult:
        raise AssertionError("a grader asks a session")

    async def close(self) -> None:
        self.closed += 1

    @asynccontextmanager
    async def session(self, program: Program) -> AsyncIterator[Scripted]:
        self.sent.append(program.code)
        assert not program.files and not program.arguments
        self.code, self.asked = program.code, 0
        if (error := self.starts(program.code)) is not None:
            raise error
        yield self

    async def ask(self, line: str, *, seconds: float) -> str:
        self.sent.append(line)
        self.seconds.append(seconds)
        self.asked += 1
        given = self.reply(json.loads(line))
        if isinstance(given, Exception):
            raise given
        return given if isinstance(given, str) else json.dumps(given)


def computing(function: Callable[..., Any]) -> Reply:
    """What the worker says of `function`."""

    def reply(request: dict[str, Any]) -> dict[str, Any]:
        name = request["id"]
        if "arguments" not in request:
            return {"id": name, "v": None}
        return {"id": name, "v": function(*request["arguments"])}

    return reply
