"""Typed functions as tools: schema from annotations, validated calls, errors a model can read."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from agentloop.errors import SandboxError, ToolError, UsageError
from agentloop.ports import Tool
from agentloop.tools.spec import tool


class Point(BaseModel):
    x: int
    y: int = 0


def search(
    query: str,
    limit: Annotated[int, Field(ge=1, description="How many.")] = 5,
    *,
    order: Literal["new", "old"] = "new",
    near: Point | None = None,
) -> dict[str, Any]:
    """Search the notes.

    Newest first.
    """
    return {"query": query, "limit": limit, "order": order, "near": near}


def call(function: Any, **arguments: Any) -> str:
    return asyncio.run(tool(function).call(arguments))


def test_the_schema_says_what_the_function_takes() -> None:
    made = tool(search)
    assert isinstance(made, Tool)
    spec = made.spec
    assert spec.name == "search" and spec.description == "Search the notes.\n\nNewest first."
    properties: Any = spec.parameters["properties"]
    assert list(properties) == ["query", "limit", "order", "near"]
    assert spec.parameters["required"] == ["query"]
    assert spec.parameters["additionalProperties"] is False
    assert properties["query"] == {"type": "string"}
    assert properties["limit"]["minimum"] == 1 and properties["limit"]["description"] == "How many."
    assert json.loads(json.dumps(spec.parameters)) == spec.parameters


def test_arguments_are_validated_and_defaults_are_the_functions_own() -> None:
    text = call(search, query="q", near={"x": 1})
    assert json.loads(text) == {
        "query": "q", "limit": 5, "order": "new", "near": {"x": 1, "y": 0},
    }  # fmt: skip


def test_an_error_lists_everything_that_is_wrong() -> None:
    with pytest.raises(ToolError) as caught:
        call(search, limit=0, order="odd", extra=1)
    text = str(caught.value)
    assert all(name in text for name in ("query: ", "limit: ", "order: ", "extra: "))
    assert "\n" not in text and "pydantic" not in text


def test_sync_and_async_functions_and_plain_text_results() -> None:
    def greet(name: str) -> str:
        """Greet."""
        return f"hi {name}"

    async def agreet(name: str) -> str:
        """Greet."""
        await asyncio.sleep(0)
        return f"hi {name}"

    assert call(greet, name="a") == call(agreet, name="a") == "hi a"


def test_names_that_a_model_class_would_not_allow() -> None:
    def odd(schema: int, json: int, model_config: int) -> int:
        """Odd names."""
        return schema + json + model_config

    assert call(odd, schema=1, json=2, model_config=3) == "6"


def test_failures_inside_the_function() -> None:
    def fails(kind: str) -> str:
        """Fail."""
        raise {"value": ValueError("too big"), "sandbox": SandboxError("dead")}[kind]

    with pytest.raises(ToolError, match="ValueError: too big"):
        call(fails, kind="value")
    with pytest.raises(SandboxError):
        call(fails, kind="sandbox")


def _no_hint(a) -> None:  # type: ignore[no-untyped-def]
    """None."""


def _star(*items: int) -> None:
    """Star."""


def _strange(thing: threading_lock) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Strange."""


_strange.__annotations__["thing"] = type("Strange", (), {})


@pytest.mark.parametrize("function", [_no_hint, _star, _strange])
def test_functions_that_cannot_be_tools(function: Any) -> None:
    with pytest.raises(UsageError, match=f"tool `{function.__name__}`"):
        tool(function)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["query", "limit", "order", "near", "x"])


@given(st.dictionaries(NAMES, JSON, max_size=5))
def test_any_arguments_end_in_text_or_a_tool_error(arguments: dict[str, Any]) -> None:
    try:
        assert isinstance(call(search, **arguments), str)
    except ToolError as error:
        assert str(error)
