"""What a call of an app is: a typed function on tables, found by its name.

Goes in: the state of all apps (`{table: {id: record}}`, plain JSON) and arguments as a model gives
them. Comes out: a JSON value, or `Refused` with one sentence, and then nothing was changed. The
decision worth knowing: the signature of a function is its schema, so that what a call is said to
take and what it checks cannot differ.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from agentloop.errors import ToolError
from agentloop.records import Json, ToolSpec

Record: TypeAlias = dict[str, Any]
Tables: TypeAlias = dict[str, dict[str, Record]]
Effect: TypeAlias = Callable[..., Json]
F = TypeVar("F", bound=Effect)

LONGEST = 4000
"""Characters of a text that an app takes."""
_KINDS: dict[str, tuple[type, str]] = {"str": (str, "string"), "int": (int, "integer")}


class Refused(ToolError):
    """Why a call did nothing, for whoever made it."""


@dataclass(frozen=True)
class Call:
    """One call: its function (of the tables and its arguments) and its arguments' kinds."""

    name: str
    function: Effect
    kinds: dict[str, str]
    required: tuple[str, ...]

    @property
    def app(self) -> str:
        """`files` of `files_read`."""
        return self.name.partition("_")[0]

    @property
    def spec(self) -> ToolSpec:
        """As a tool."""
        return ToolSpec(
            name=self.name,
            description=inspect.getdoc(self.function) or "",
            parameters={
                "type": "object",
                "properties": {
                    name: {"type": _KINDS[kind][1]} for name, kind in self.kinds.items()
                },
                "required": list(self.required),
                "additionalProperties": False,
            },
        )

    def __str__(self) -> str:
        """As a person would note it down."""
        given = (f"{name}: {kind}" for name, kind in self.kinds.items())
        return f"{self.name}({', '.join(given)}): {self.spec.description}"


CALLS: dict[str, Call] = {}
"""All calls of all apps, by name; filled by `call`."""


def call(function: F) -> F:
    """Make a function of the tables and typed arguments a call of the app that its name begins
    with."""
    _, *rest = inspect.signature(function).parameters.values()
    required = tuple(one.name for one in rest if one.default is one.empty)
    kinds = {one.name: str(one.annotation) for one in rest}
    CALLS[function.__name__] = Call(function.__name__, function, kinds, required)
    return function


def perform(tables: Tables, name: str, arguments: Mapping[str, Any]) -> Json:
    """Call `name`. Raises `Refused` for an unknown call, wrong arguments, and what the app itself
    cannot do."""
    found = CALLS.get(name)
    if found is None:
        raise Refused(f"there is no call `{name}`; `apps_show(app)` lists those of an app")
    usage = f"it takes ({', '.join(f'{key}: {kind}' for key, kind in found.kinds.items())})"
    if surplus := sorted(str(key) for key in arguments if key not in found.kinds):
        raise Refused(f"`{name}` has no argument `{surplus[0][:40]}`; {usage}")
    if missing := [key for key in found.required if key not in arguments]:
        raise Refused(f"`{name}` lacks the argument `{missing[0]}`; {usage}")
    for key, value in arguments.items():
        kind = _KINDS[found.kinds[key]][0]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise Refused(f"`{key}` of `{name}` is a {type(value).__name__}; {usage}")
        if isinstance(value, str) and len(value) > LONGEST:
            raise Refused(f"`{key}` of `{name}` is longer than {LONGEST} characters")
    return found.function(tables, **arguments)


def one(tables: Tables, table: str, key: str) -> Record:
    """The record `key`. Raises `Refused` when the table lacks it."""
    if key not in tables[table]:
        raise Refused(f"there is no `{key[:60]}` among the {table}")
    return tables[table][key]


def shown(key: str, record: Record) -> Json:
    """A record with its id, as an app tells it."""
    return {"id": key, **record}


def matching(tables: Tables, table: str, test: Callable[[Record], bool]) -> Json:
    """All records that pass, in the order of the table."""
    return [shown(key, record) for key, record in tables[table].items() if test(record)]


def add(tables: Tables, table: str, record: Record) -> str:
    """Put a new record into a table, under a new id, which it returns."""
    counter = tables["made"]["all"]
    counter["count"] += 1
    key = f"{table[0]}{100 + counter['count']}"
    tables[table][key] = record
    return key
