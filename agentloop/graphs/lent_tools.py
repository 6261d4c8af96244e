"""The tools as one rollout sees them: what each gave is noted, in the order of the calls.

Goes in: the tools that a run lends. Comes out: the same by name, and their `ToolResult`s. Decision:
results are kept as the tools gave them, because what a graph makes of one (a turn in plain text, a
number that steers a search) cannot be turned back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from agentloop.errors import SandboxError, ToolError
from agentloop.ports import Tool
from agentloop.records import Json, ToolResult, ToolSpec, content_id


class ToolBook:
    """Results of one rollout's tool calls."""

    def __init__(self) -> None:
        self._given: list[ToolResult | None] = []
        self.on_result: Callable[[int, ToolResult], None] | None = None
        """Told of every result and its place, if there is somebody to tell."""

    def lend(self, tools: Mapping[str, Tool]) -> dict[str, Tool]:
        """The same tools, whose results are noted here."""
        return {name: _Noted(tool, name, self) for name, tool in tools.items()}

    def results(self) -> tuple[ToolResult, ...]:
        """Of the calls that ended, in the order in which they began."""
        return tuple(one for one in self._given if one is not None)

    def restore(self, results: Mapping[int, ToolResult]) -> None:
        """Take over what an interrupted run of this rollout was told."""
        self._given = [results.get(at) for at in range(max(results, default=-1) + 1)]

    def begin(self) -> int:
        """The place of a call that begins."""
        self._given.append(None)
        return len(self._given) - 1

    def end(self, at: int, result: ToolResult) -> None:
        """What the call at place `at` gave."""
        self._given[at] = result
        if self.on_result is not None:
            self.on_result(at, result)


@dataclass(frozen=True)
class _Noted:
    tool: Tool
    name: str
    book: ToolBook

    @property
    def spec(self) -> ToolSpec:
        return self.tool.spec

    async def call(self, arguments: dict[str, Json]) -> str:
        at, given = self.book.begin(), content_id("arguments", arguments)
        note = partial(ToolResult, name=self.name, arguments=given)
        try:
            text = await self.tool.call(arguments)
        except ToolError as error:
            self.book.end(at, note(text=str(error), error="tool"))
            raise
        except SandboxError as error:
            self.book.end(at, note(text=str(error), error="sandbox"))
            raise
        self.book.end(at, note(text=text))
        return text
