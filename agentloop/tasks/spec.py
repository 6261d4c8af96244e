"""Tasks from one short text, as `--tasks` takes it.

In: `reasoning_gym:FAMILY[,FAMILY...]`, or the path of a JSONL file. Out: a `Tasks` part.
"""

from __future__ import annotations

from pathlib import Path

from agentloop.errors import UsageError
from agentloop.ports import Tasks
from agentloop.tasks.files import Jsonl
from agentloop.tasks.reasoning_gym import ReasoningGym

_GENERATOR = "reasoning_gym:"


def from_spec(spec: str, base: Path) -> Tasks:
    """The tasks that `spec` names; a path in it is relative to `base`. Raises `UsageError` for
    what is neither form; a family or a file is checked when tasks are drawn."""
    if spec.startswith(_GENERATOR):
        names = [name.strip() for name in spec.removeprefix(_GENERATOR).split(",")]
        if not all(names):
            raise UsageError(f"`{spec}` names no family; write `reasoning_gym:gcd,lcm`")
        return ReasoningGym(families=names)
    if Path(spec).suffix in (".jsonl", ".ndjson"):
        return Jsonl(path=str(base / Path(spec).expanduser()))
    raise UsageError(
        f"`{spec}` names no tasks; give a path ending in .jsonl, or `reasoning_gym:FAMILY[,FAMILY]`"
    )
