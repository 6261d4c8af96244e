"""Skills shown step by step: a list within its budget, a body, a file; nothing else."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from malicious_skills import skill

from agentloop.errors import ToolError
from agentloop.records import Skill
from agentloop.tools.skills import LoadSkill, catalogue, estimate, load_skill
from agentloop.tools.spec import tool

CIRCLE = replace(
    skill(
        {
            "SKILL": "Use area.\n\n---\n\nSee references/pi.md.",
            "scripts/area.py": "def area(r):\n    return 3 * r * r\n",
            "references/pi.md": "3 & more",
            "assets/logo.png": "data:;base64,/w==",
        },
        "circles",
    ),
    description="Area of <circles> & rings.",
)
TOOL = LoadSkill({"circles": CIRCLE, "words": skill({}, "words")})


def call(path: object) -> str:
    return asyncio.run(TOOL.call({"path": path}))  # type: ignore[dict-item]


def test_a_list_then_a_body_then_a_file() -> None:
    listed = call("")
    first = ET.fromstring(listed)[0]
    told = {part.tag: (part.text or "").strip() for part in first}
    assert told == {
        "name": "circles", "description": "Area of <circles> & rings.",
        "location": "circles/SKILL.md",
    }  # fmt: skip
    body = call(told["location"])
    assert body == call("circles")
    assert "Use area.\n\n---\n\nSee" in body and "name: circles" not in body
    assert "<file>references/pi.md</file>" in body
    assert call("circles/references/pi.md") == "3 & more"
    assert "skill_resources" not in call("words")


@pytest.mark.parametrize(("path", "told"), [
    ("circle", "did you mean `circles`?"), ("circles/pi.md", "references/pi.md"),
    ("../circles", "unknown skill `..`"), ("circles/../words/SKILL.md", "unknown file"),
    ("/etc/passwd", "did you mean"), ("circles/assets/logo.png", "is no text"), (3, "a string"),
])  # fmt: skip
def test_what_is_not_there_is_said(path: object, told: str) -> None:
    if path == "/etc/passwd":
        assert call(path) == call("")  # what is before the slash is empty: the list
        return
    with pytest.raises(ToolError) as error:
        call(path)
    assert told in str(error.value)


def test_the_shape_is_that_of_the_public_reader(tmp_path: Path) -> None:
    skills_ref = pytest.importorskip("skills_ref")
    from agentloop.skills.library import export

    one = skill({}, "words")
    theirs = skills_ref.to_prompt([export(one, tmp_path).parent])
    assert theirs.replace(str(tmp_path.resolve()) + "/", "") == catalogue([one]).replace(
        "<name>\nwords\n</name>\n<description>", "<name>\nwords\n</name>\n<description>"
    )


@given(
    st.lists(st.text(max_size=300), max_size=30),
    st.integers(0, 1500),
    st.sampled_from([estimate, len, lambda text: len(text.split())]),
)
def test_a_catalogue_keeps_its_budget(texts: list[str], tokens: int, count: object) -> None:
    skills = [replace(skill({}, f"s-{at}"), description=text) for at, text in enumerate(texts)]
    shown = catalogue(skills, tokens=tokens, count=count)  # type: ignore[arg-type]
    empty = catalogue([], tokens=tokens)
    assert count(shown) <= max(tokens, count(empty))  # type: ignore[operator]
    if tokens > 1400 and len(texts) == 1 and len(texts[0]) < 100:
        assert "s-0" in shown


def test_a_long_file_keeps_head_and_tail() -> None:
    long = LoadSkill({"a": replace(CIRCLE, name="a", files={"x.md": "b" + "x" * 99_999 + "e"})})
    text = asyncio.run(long.call({"path": "a/x.md"}))
    assert len(text) < 33_000 and text[0] == "b" and text[-1] == "e" and "left out" in text


def test_the_workspace_s_skills_as_a_lent_tool() -> None:
    lent = tool(load_skill)
    assert lent.spec.name == "load_skill"
    assert "exact-arithmetic" in asyncio.run(lent.call({}))
    assert "Never compute in your head" in asyncio.run(lent.call({"path": "exact-arithmetic"}))


def test_the_skill_of_a_log_is_shown_as_one_from_a_folder() -> None:
    assert isinstance(TOOL.skills["circles"], Skill) and TOOL.spec.name == "load_skill"
