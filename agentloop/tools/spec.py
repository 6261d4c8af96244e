"""`tool(function)`: a typed Python function becomes something an agent may call.

Goes in: a function with annotated parameters and a docstring, sync or async. Comes out: a
`ports.Tool` whose JSON schema is made from the annotations by pydantic and whose arguments are
validated by it. Decision: what goes wrong inside the function is the model's to read (`ToolError`)
unless it is one of our own errors; synchronous functions run in a thread.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NotRequired, get_type_hints

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic_core import to_json
from typing_extensions import TypedDict

from agentloop.errors import AgentLoopError, ToolError, UsageError
from agentloop.records import Json, ToolSpec


@dataclass(frozen=True)
class FunctionTool:
    """See `tool`, which makes it."""

    spec: ToolSpec
    function: Callable[..., Any]
    adapter: TypeAdapter[Any] = field(repr=False)

    async def call(self, arguments: dict[str, Json]) -> str:
        """The function's result as text (JSON unless it is a `str`). Raises `ToolError`, which
        lists every argument that is wrong, or names the function's own exception."""
        try:
            values = self.adapter.validate_python(arguments)
        except ValidationError as error:
            raise ToolError(_explain(error, self.spec)) from None
        try:
            if inspect.iscoroutinefunction(self.function):
                result = await self.function(**values)
            else:
                result = await asyncio.to_thread(self.function, **values)
        except AgentLoopError:
            raise
        except Exception as error:
            raise ToolError(f"{type(error).__name__}: {error}") from error
        return result if isinstance(result, str) else _text(result)


def tool(function: Callable[..., Any]) -> FunctionTool:
    """`function` as a tool; its docstring is the description. Raises `UsageError` when a
    parameter has no annotation, has one without a JSON schema, or cannot be given by name."""
    name = getattr(function, "__name__", type(function).__name__)
    hints = get_type_hints(function, include_extras=True)
    shape: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UsageError(f"tool `{name}`: parameter `{parameter}` cannot be given by name")
        if parameter.name not in hints:
            raise UsageError(f"tool `{name}`: annotate parameter `{parameter.name}` with its type")
        hint = hints[parameter.name]
        required = parameter.default is parameter.empty
        shape[parameter.name] = hint if required else NotRequired[hint]
    arguments = TypedDict(name, shape)  # type: ignore[misc]
    arguments.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(arguments)
        schema = adapter.json_schema()
    except PydanticSchemaGenerationError as error:
        raise UsageError(f"tool `{name}`: {str(error).splitlines()[0]}") from error
    schema.pop("title", None)
    for described in schema.get("properties", {}).values():
        described.pop("title", None)
    spec = ToolSpec(name=name, description=inspect.getdoc(function) or "", parameters=schema)
    return FunctionTool(spec, function, adapter)


def _explain(error: ValidationError, spec: ToolSpec) -> str:
    faults = [
        f"{'.'.join(str(at) for at in fault['loc']) or 'arguments'}: {fault['msg']}"
        for fault in error.errors(include_url=False, include_input=False)
    ]
    return f"wrong arguments for `{spec.name}`: {'; '.join(faults)}"


def _text(result: object) -> str:
    return to_json(result, fallback=str).decode()
