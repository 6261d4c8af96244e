"""A world for each rollout: made and reset when it begins, read when it ends.

Goes in: what makes a world, and an order for a rollout. Comes out: the tools that act in that world
alone, and its last snapshot for the grader. The decision worth knowing: the tools of a run are told
by their schemas before any rollout begins, so a world's calls must be the same for every task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agentloop.errors import UsageError
from agentloop.ports import Lends, Sandbox, Snapshots, Tool
from agentloop.records import Attempt, Json
from agentloop.tools.functions import Function
from agentloop.tools.world_code import CodeWorld, WorldCode
from agentloop.trajectories.codec import from_json
from agentloop.worlds.actions import ToolWorld, world_tools

LIBRARY = "library"
"""The key of `Task.data` that holds functions the rollout's code may call, as JSON."""


@dataclass(frozen=True)
class OwnWorld:
    """One rollout's; see `graphs.run.Owned`."""

    world: Snapshots
    first: str
    tools: Sequence[Tool]

    def state(self) -> dict[str, Json]:
        """The last snapshot; beside it, under `turns`, what code did in it."""
        code = [tool for tool in self.tools if isinstance(tool, WorldCode)]
        return {**self.world.snapshot(), **(code[0].state() if code else {})}


@dataclass(frozen=True)
class Worlds:
    """Worlds made by `make`; with `code`, the agent acts in them by Python in `sandbox`."""

    make: Callable[[], Any]
    sandbox: Sandbox
    code: bool = False

    def tools(self) -> Sequence[Tool]:
        """The tools as a run knows them, of a world that nobody is in."""
        return self._tools(self.make(), ())

    def own(self, attempt: Attempt) -> OwnWorld:
        """A world of its own for one rollout, reset to its task."""
        world = self.make()
        first = world.reset(attempt.task, attempt.sampling.seed or 0)
        library = attempt.task.data.get(LIBRARY)
        known = [from_json(Function, one) for one in library] if isinstance(library, list) else []
        return OwnWorld(world, first.text, self._tools(world, known))

    def _tools(self, world: Any, known: Sequence[Function]) -> Sequence[Tool]:
        if not isinstance(world, ToolWorld) or not isinstance(world, Snapshots):
            raise UsageError(
                f"`world` is a {type(world).__name__}, which lacks `tools` or `snapshot`; "
                "see agentloop.worlds.actions"
            )
        if not self.code:
            return world_tools(world)
        if not isinstance(self.sandbox, Lends):
            raise UsageError("this sandbox lends code no functions; use `sandbox: monty`")
        if not isinstance(world, CodeWorld):
            raise UsageError(
                f"code cannot act in a {type(world).__name__}; leave `python` out of `tools`"
            )
        return [WorldCode(world, self.sandbox, known)]
