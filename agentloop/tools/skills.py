"""Skills shown step by step: a catalogue first, then one skill's body, then one of its files.

Goes in: skills, and a path from the catalogue. Comes out: text for the model. A catalogue costs
about a hundred tokens a skill, so it has a budget; a body is read when it is needed, and a file
when the body asks for it. The shape of the catalogue is that of the public `agentskills to-prompt`,
which models were trained on.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agentloop.errors import ToolError, UnknownName
from agentloop.records import Json, Skill, ToolSpec
from agentloop.refs import resolve
from agentloop.tools.code import clip
from agentloop.workspace import Workspace

TOKENS = 2000
"""Tokens of a catalogue."""
SHOWN_BYTES = 32_768
"""Most bytes of a body or file that a model is shown; the specification recommends bodies below
5,000 tokens, which is 20,000."""
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n.*?^---[ \t]*(?:\r?\n|\Z)", re.S | re.M)
_OPEN, _CLOSE = "<available_skills>", "</available_skills>"
_BINARY = "data:;base64,"
_SPEC = ToolSpec(
    name="load_skill",
    description="Read a skill before you use it. `path` is a location from the list of available "
    "skills, or a file that a skill names; empty for the list.",
    parameters={
        "type": "object",
        "properties": {"path": {"type": "string", "description": "NAME, or NAME/FILE."}},
        "additionalProperties": False,
    },
)


def estimate(text: str) -> int:
    """Tokens of a text, rather too many: two bytes each. English has four to five, but a catalogue,
    with its tags and names, was measured at 2.7."""
    return -(-len(text.encode(errors="replace")) // 2)


def catalogue(
    skills: Iterable[Skill], *, tokens: int = TOKENS, count: Callable[[str], int] = estimate
) -> str:
    """Name, description and location of the skills in order, as many as `tokens` hold by `count`;
    with room for none, an empty list."""
    parts, left = [_OPEN], tokens - count(f"{_OPEN}\n{_CLOSE}")
    for skill in skills:
        entry = (
            f"<skill>\n<name>\n{html.escape(skill.name)}\n</name>\n"
            f"<description>\n{html.escape(' '.join(skill.description.split()))}\n</description>\n"
            f"<location>\n{html.escape(skill.name)}/SKILL.md\n</location>\n</skill>"
        )
        left -= count(f"{entry}\n")
        if left < 0:
            break
        parts.append(entry)
    return "\n".join([*parts, _CLOSE])


@dataclass(frozen=True)
class LoadSkill:
    """`load_skill(path)` over skills by name."""

    skills: Mapping[str, Skill]
    tokens: int = TOKENS

    @property
    def spec(self) -> ToolSpec:
        """One string argument."""
        return _SPEC

    async def call(self, arguments: dict[str, Json]) -> str:
        """The catalogue, a skill's body with the names of its files, or a file. Raises `ToolError`
        that names what there is."""
        path = arguments.get("path", "")
        if not isinstance(path, str) or arguments.keys() - {"path"}:
            raise ToolError("wrong arguments for `load_skill`: give `path`, a string, alone")
        return show(self.skills, path, tokens=self.tokens)


def show(skills: Mapping[str, Skill], path: str, *, tokens: int = TOKENS) -> str:
    """What is at `path`; raises `ToolError`."""
    name, _, file = path.strip().removeprefix("./").partition("/")
    if not name:
        return catalogue(skills.values(), tokens=tokens)
    skill = skills.get(name)
    if skill is None:
        raise ToolError(str(UnknownName("skill", name[:80], skills)))
    if file in ("", "SKILL.md"):
        return _body(skill)
    text = skill.files.get(file)
    if text is None:
        raise ToolError(str(UnknownName(f"file of `{name}`", file[:120], skill.files)))
    if text.startswith(_BINARY):
        raise ToolError(f"`{name}/{file}` is no text; it can only be used by a script")
    return clip(text, SHOWN_BYTES)


def load_skill(path: str = "") -> str:
    """Read a skill before you use it. `path` is a location from the list of available skills, or a
    file that a skill names; empty for the list."""
    curated: Any = resolve("agentloop.skills.library:curated")  # one stage imports no other
    return show({skill.name: skill for skill in curated(Workspace.find())}, path)


def _body(skill: Skill) -> str:
    body = clip(_FRONT.sub("", skill.document, count=1).strip(), SHOWN_BYTES)
    listed = "".join(f"<file>{html.escape(path)}</file>\n" for path in skill.files)
    beside = f"\n<skill_resources>\n{listed}</skill_resources>" if listed else ""
    return f'<skill_content name="{html.escape(skill.name)}">\n{body}{beside}\n</skill_content>'
