"""A world's calls as functions of Python code: the agent acts by writing programs.

Goes in: code, and a sandbox that lends functions. Comes out: what the code printed. Top-level
functions of code that ran without an error are known to the code that comes after it; variables are
not. The decision worth knowing: the code runs in the sandbox and only the calls come out of it, and
what the grader needs to know of a program (which known functions it used, and what came of that) is
noted here, outside, where the code cannot write.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from agentloop.errors import ToolError
from agentloop.ports import Lends
from agentloop.records import Json, SandboxResult, ToolSpec
from agentloop.tools.code import clip
from agentloop.tools.functions import Function, functions, parsed, reaching, reporting

ENDED = "The task is ended."
"""The last line of what the tool gives once the world is done."""
OUTPUT_BYTES = 1200
"""Most bytes of output that a model is shown."""
MARK = "k_"
"""How the names begin that report a known function's end; the rest is random."""
Using = dict[str, Any]
"""`name`; `inside`: what was changed while it ran; `after`: (call, what it changed) after that."""


@runtime_checkable
class CodeWorld(Protocol):
    """A world whose calls have values: what code in it needs."""

    def tools(self) -> Sequence[ToolSpec]:
        """The calls."""
        ...

    def value(self, name: str, arguments: Mapping[str, Any]) -> Json:
        """What a call gives. Raises `ToolError` when it is refused."""
        ...

    def effects(self) -> Sequence[tuple[str, Sequence[str]]]:
        """Of each call that changed something: its name, and names of what it changed."""
        ...

    def done(self) -> bool:
        """Whether the episode is over."""
        ...


@dataclass
class WorldCode:
    """`python(code)` in a world; satisfies `ports.Tool`. `known` are functions that code may call
    before it has written any."""

    world: CodeWorld
    sandbox: Lends
    known: Sequence[Function] = ()
    turns: list[dict[str, Any]] = field(default_factory=list)
    """Of each call: `code`, whether it ended in an `error`, and the `used` functions of `known`."""

    def __post_init__(self) -> None:
        self._own: dict[str, Function] = {}

    @property
    def spec(self) -> ToolSpec:
        """One string, so that the plain-text call format takes the code as it stands."""
        return _SPEC

    async def call(self, arguments: dict[str, Json]) -> str:
        """Output, then the code's last error line if it failed. Raises `ToolError` for arguments
        other than `code`, `SandboxError` when the code could not be run."""
        code = arguments.get("code")
        if not isinstance(code, str) or len(arguments) != 1:
            raise ToolError("wrong arguments for `python`: give `code`, a string, and nothing else")
        mark = f"{MARK}{secrets.token_hex(8)}"
        known = [one for one in self.known if one.name not in self._own]
        watch = _Watch(self.world)
        lent: dict[str, Callable[..., Json]] = {
            spec.name: _lent(self.world, spec) for spec in self.world.tools()
        }
        lent |= {f"{mark}_begin": watch.begin, f"{mark}_end": watch.end}
        before = reporting(known, mark) + "".join(f"{one.code}\n" for one in self._own.values())
        result = await self.sandbox.run_with(f"{before}\n{code}", lent)
        self._note(code, result, watch)
        shown = [clip(result.stdout, OUTPUT_BYTES).rstrip("\n"), result.error]
        return "\n".join(filter(None, [*shown, ENDED if self.world.done() else ""]))

    def state(self) -> dict[str, Json]:
        """What the calls were, for the grader."""
        return {"turns": [dict(turn) for turn in self.turns]}

    def _note(self, code: str, result: SandboxResult, watch: _Watch) -> None:
        used = watch.used()
        names = {each["name"] for each in used}
        for each in used:
            each["reached"] = [
                [name, changed] for name, changed in each.pop("after")
                if each["name"] in reaching(code, names, {name})
            ]  # fmt: skip
        self.turns.append({"code": code, "error": result.error, "used": used})
        if not result.error and parsed(code) is not None:
            self._own |= {one.name: one for one in functions(code)}


class _Watch:
    """Which known functions began and ended, and between which effects."""

    def __init__(self, world: CodeWorld) -> None:
        self._world = world
        self._open: list[tuple[str, int]] = []
        self._ended: list[tuple[str, int, int]] = []

    def begin(self, name: str) -> None:
        """A known function was called."""
        self._open.append((name, len(self._world.effects())))

    def end(self, name: str) -> None:
        """It returned; those that began after it and did not return have failed."""
        while self._open:
            opened, at = self._open.pop()
            if opened == name:
                self._ended.append((name, at, len(self._world.effects())))
                return

    def used(self) -> list[Using]:
        """See `Using`; one for each call that returned."""
        effects = [[name, list(changed)] for name, changed in self._world.effects()]
        return [
            {"name": name, "inside": effects[begin:end], "after": effects[end:]}
            for name, begin, end in self._ended
        ]


def _lent(world: CodeWorld, spec: ToolSpec) -> Callable[..., Json]:
    """One call as a function; arguments by position go by the order of its schema."""
    properties = spec.parameters["properties"]
    names = list(properties) if isinstance(properties, dict) else []

    def function(*given: Any, **named: Any) -> Json:
        if len(given) > len(names):
            raise ValueError(f"`{spec.name}` takes at most {len(names)} arguments")
        try:
            return world.value(spec.name, {**dict(zip(names, given, strict=False)), **named})
        except ToolError as error:
            raise ValueError(str(error)) from None

    return function


_SPEC = ToolSpec(
    name="python",
    description="Run Python code that calls the apps' functions; returns what it prints.",
    parameters={
        "type": "object",
        "properties": {"code": {"type": "string", "description": "The code to run."}},
        "required": ["code"],
        "additionalProperties": False,
    },
)
