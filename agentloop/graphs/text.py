"""Read a model's plain text: a tool call in a fenced block, a final answer. Never raises.

The call format: the first fenced block whose info string is a tool's name. Its body is the only
string argument of that tool, or a JSON object of all arguments. Sampled text is only read here,
never rewritten. Decision: a block that is still open at the end of the text counts, because an
engine that stops at the closing fence leaves it out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from agentloop.records import Json, ToolCall, ToolSpec
from agentloop.trajectories.arguments import read_json

_FENCE = re.compile(r"^[ \t]*```[ \t]*([A-Za-z_][\w.-]*)[ \t\r]*$", re.MULTILINE)
_CLOSE = re.compile(r"^[ \t]*```", re.MULTILINE)
_ANSWER = re.compile(r"\banswer[ \t]*[*_`]*[ \t]*:[ \t*_`]*", re.IGNORECASE)
_PAIRS = (("_", "_"), ("$", "$"), ('"', '"'), ("'", "'"), ("“", "”"))
"""What may enclose an answer: left and right."""


def find_call(text: str, tools: Iterable[ToolSpec]) -> ToolCall | None:
    """The first tool call in `text`, or `None`. Bad arguments stay the tool's to refuse."""
    known = {tool.name: tool for tool in tools}
    for fence in _FENCE.finditer(text):
        tool = known.get(fence.group(1))
        if tool is None:
            continue
        close = _CLOSE.search(text, fence.end())
        body = text[fence.end() : close.start() if close else len(text)].strip("\r\n")
        return ToolCall(id="", name=tool.name, arguments=_arguments(body, tool))
    return None


def _arguments(body: str, tool: ToolSpec) -> dict[str, Json]:
    properties = tool.parameters.get("properties")
    names = list(properties) if isinstance(properties, dict) else []
    if len(names) == 1 and isinstance(properties, dict):
        only = properties[names[0]]
        if isinstance(only, dict) and only.get("type") == "string":
            return {names[0]: body}
    try:
        value = read_json(body or "{}")
    except ValueError:
        return {names[0]: body} if len(names) == 1 else {}
    if isinstance(value, dict):
        return value
    return {names[0]: value} if len(names) == 1 else {}


def final_answer(text: str) -> str:
    r"""What follows the last `Answer:` on its line (or the next non-empty one), else the last
    `\boxed{...}`, else the last non-empty line; without markdown, quotes or a closing full stop."""
    marks = list(_ANSWER.finditer(text))
    rest = text[marks[-1].end() :] if marks else ""
    if rest.strip():
        found = rest.strip().splitlines()[0]
        return _bare(_boxed(found) or found)
    lines = [line for line in text.splitlines() if line.strip()]
    return _bare(_boxed(text) or (lines[-1] if lines else ""))


def _boxed(text: str) -> str:
    r"""The inside of the last `\boxed{...}`, braces balanced; empty when there is none."""
    _, mark, rest = text.rpartition("\\boxed{")
    if not mark:
        return ""
    depth = 1
    for at, char in enumerate(rest):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return rest[:at]
    return ""


def _bare(text: str) -> str:
    before = None
    text = text.strip()
    while text != before:
        before = text
        text = text.rstrip(".,;: ").strip()
        text = text.strip("*` ") or text
        for left, right in _PAIRS:
            if len(text) > 2 and text[0] == left and text[-1] == right:
                text = text[1:-1].strip()
    return text
