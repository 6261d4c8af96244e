"""The python tool over any sandbox: what the model reads, and how long output is cut."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.errors import SandboxError, ToolError
from agentloop.ports import Tool
from agentloop.records import SandboxResult
from agentloop.tools.code import OUTPUT_BYTES, PRELUDE, PythonTool, clip


class Fixed:
    """A sandbox with one result."""

    def __init__(self, result: SandboxResult | None) -> None:
        self.result, self.ran = result, [""]

    async def run(self, code: str) -> SandboxResult:
        self.ran.append(code)
        if self.result is None:
            raise SandboxError("dead")
        return self.result

    async def close(self) -> None:
        return None


@pytest.mark.parametrize(
    ("stdout", "error", "text"),
    [
        ("5\n", "", "5"),
        ("a\nb\n", "", "a\nb"),
        ("", "", ""),
        ("half\n", "ZeroDivisionError: division by zero",
         "half\nZeroDivisionError: division by zero"),
        ("", "NameError: x", "NameError: x"),
    ],
)  # fmt: skip
def test_output_and_errors_are_text(stdout: str, error: str, text: str) -> None:
    sandbox = Fixed(SandboxResult(stdout=stdout, error=error))
    made = PythonTool(sandbox)
    assert isinstance(made, Tool) and made.spec.name == "python"
    assert asyncio.run(made.call({"code": "print(1)"})) == text
    assert sandbox.ran[-1] == PRELUDE + "print(1)"


@pytest.mark.parametrize("arguments", [{}, {"code": 1}, {"code": "x", "y": 1}, {"source": "x"}])
def test_wrong_arguments(arguments: dict[str, object]) -> None:
    with pytest.raises(ToolError, match="code"):
        asyncio.run(PythonTool(Fixed(SandboxResult(stdout=""))).call(arguments))  # type: ignore[arg-type]


def test_a_dead_sandbox_is_not_the_models_fault() -> None:
    with pytest.raises(SandboxError):
        asyncio.run(PythonTool(Fixed(None)).call({"code": "1"}))


def test_long_output_keeps_head_and_tail() -> None:
    text = "head" + "x" * 100_000 + "tail"
    shown = asyncio.run(PythonTool(Fixed(SandboxResult(stdout=text))).call({"code": ""}))
    assert shown.startswith("head") and shown.endswith("tail")
    assert len(shown) < OUTPUT_BYTES + 100 and "95912 bytes left out" in shown


@given(st.text(), st.integers(0, 20))
def test_clip_never_breaks_a_character(text: str, half: int) -> None:
    shown = clip(text, 2 * half)
    size = len(text.encode(errors="replace"))
    if size <= 2 * half:
        assert shown == text
    else:
        assert len(shown.encode()) <= 2 * half + 60 and "left out" in shown
