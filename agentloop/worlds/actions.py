"""A world's actions as tools, so that any graph that can call tools can act in any world.

In: a world that has been reset. Out: one tool per action, all acting on that world. The tools share
`done`, which a graph looks at after each call to know that the episode is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from agentloop.ports import World
from agentloop.records import Json, ToolCall, ToolSpec


@runtime_checkable
class Actions(Protocol):
    """Optional for a `World`: what can be done in it."""

    def tools(self) -> Sequence[ToolSpec]:
        """The actions that `act` understands; always the same ones."""
        ...


@runtime_checkable
class ToolWorld(World, Actions, Protocol):
    """A world whose actions are known."""


@dataclass
class _Shared:
    world: World
    done: bool = False
    calls: int = 0


@dataclass(frozen=True)
class WorldTool:
    """One action of a world; satisfies `ports.Tool`."""

    spec: ToolSpec
    shared: _Shared = field(repr=False)

    async def call(self, arguments: dict[str, Json]) -> str:
        """Act, and give the text of the observation; a wrong call is a text that says so."""
        self.shared.calls += 1
        call = ToolCall(id=f"act-{self.shared.calls}", name=self.spec.name, arguments=arguments)
        observation = self.shared.world.act(call)
        self.shared.done = observation.done
        return observation.text

    @property
    def done(self) -> bool:
        """Whether the episode is over, by whichever of the tools."""
        return self.shared.done


def world_tools(world: ToolWorld) -> list[WorldTool]:
    """The actions of `world` as tools. Reset the world first; its first observation belongs in the
    prompt, and its last `snapshot()` in `Episode.state`."""
    shared = _Shared(world)
    return [WorldTool(spec, shared) for spec in world.tools()]
