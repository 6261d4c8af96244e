"""Reading a model's text: calls in fenced blocks, final answers, and never an exception."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentloop.graphs.text import final_answer, find_call
from agentloop.records import ToolSpec


def spec(name: str, **types: str) -> ToolSpec:
    properties = {field: {"type": kind} for field, kind in types.items()}
    return ToolSpec(
        name=name, description="", parameters={"type": "object", "properties": properties}
    )


TOOLS = [spec("python", code="string"), spec("add", a="integer", b="integer"), spec("now"),
         spec("square", x="integer")]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("```python\nprint(1)\n```", "python", {"code": "print(1)"}),
        ("Let me see.\n\n```python\na = 1\n\nprint(a)\n```\nso", "python",
         {"code": "a = 1\n\nprint(a)"}),
        ("```python\nprint(1)", "python", {"code": "print(1)"}),
        ("```text\nx\n```\n```add\n{\"a\": 1, \"b\": 2}\n```", "add", {"a": 1, "b": 2}),
        ("```python\nfirst\n```\n```add\n{}\n```", "python", {"code": "first"}),
        ("``` python \r\nprint(1)\r\n```", "python", {"code": "print(1)"}),
        ("```now\n```", "now", {}),
        ("```square\n7\n```", "square", {"x": 7}),
        ("```square\nx\n```", "square", {"x": "x"}),
        ("```add\nnonsense\n```", "add", {}),
    ],
)  # fmt: skip
def test_calls(text: str, name: str, arguments: object) -> None:
    call = find_call(text, TOOLS)
    assert call is not None
    assert (call.name, call.arguments) == (name, arguments)


@pytest.mark.parametrize(
    "text",
    ["", "python", "```\nprint(1)\n```", "```py\nprint(1)\n```", "`python` x", "```python x"],
)
def test_no_calls(text: str) -> None:
    assert find_call(text, TOOLS) is None


FENCES = st.lists(
    st.sampled_from(["```", "```python", "```add", "\n", "{", '{"a": 1}', "Answer:", "\\boxed{",
                     "}", " ", "x", "[" * 2000, "\ud800", "**", "\r"]), max_size=30
).map("".join)  # fmt: skip


@given(st.one_of(st.text(), FENCES))
def test_nothing_raises_and_calls_name_a_tool(text: str) -> None:
    call = find_call(text, TOOLS)
    assert call is None or (call.name in {tool.name for tool in TOOLS})
    assert isinstance(final_answer(text), str)


@given(st.text(alphabet=st.characters(exclude_characters="`\r\n", exclude_categories=["Cs"])))
def test_a_body_comes_back_as_it_was(code: str) -> None:
    call = find_call(f"Thinking.\n```python\n{code}\n```\nmore", TOOLS)
    assert call is not None and call.arguments == {"code": code}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: 42", "42"),
        ("answer: 1\nno, Answer: 2.", "2"),
        ("**Final Answer:** 42", "42"),
        ("**Answer: 42**", "42"),
        ("Answer:\n\n 42", "42"),
        ("Answer: `[1, 2]`.", "[1, 2]"),
        ("Answer: \\(x\\) is $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("So we get \\boxed{7}, as wanted.\nDone", "7"),
        ("It is\n-5\n", "-5"),
        ('Answer: "abc"', "abc"),
        ("The answer is 5", "The answer is 5"),
        ("only\n\n", "only"),
        ("", ""),
        ("x\nAnswer:", "Answer"),
        ("Answer: 3.5", "3.5"),
    ],
)
def test_final_answers(text: str, answer: str) -> None:
    assert final_answer(text) == answer
