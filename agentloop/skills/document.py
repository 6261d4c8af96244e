"""SKILL.md files in the Agent Skills format (agentskills.io/specification): parse, check, write.

Goes in: text that anyone may have written. Comes out: a `Document`, and every problem at once
rather than the first. The front matter is read with `yaml.safe_load` under caps on size
and depth and without aliases, so a small file cannot cost much or grow into a large one.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import field

import yaml

from agentloop.errors import UsageError
from agentloop.records import Skill, record

FIELDS = ("name", "description", "license", "compatibility", "metadata", "allowed-tools")
MAX_DOCUMENT, MAX_FRONT_MATTER = 200_000, 10_000  # characters
_LIMITS = {"description": 1024, "compatibility": 500}
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_SPLIT = re.compile(r"---[ \t]*\n(.*?)^---[ \t]*(?:\n(.*))?\Z", re.S | re.M)


@record
class Document:
    """A SKILL.md in parts."""

    name: str
    description: str
    body: str = ""
    license: str = ""
    compatibility: str = ""
    allowed_tools: str = ""
    """Space-separated; experimental in the specification, kept as it is."""
    metadata: dict[str, str] = field(default_factory=dict)


def parse(text: str, *, folder: str | None = None) -> Document:
    """The document; raises `UsageError` with all problems when it is not a valid one."""
    problems = check(text, folder=folder)
    if problems:
        raise UsageError(f"not a valid SKILL.md: {'; '.join(problems)}")
    header, body, _ = _front_matter(text)
    return Document(
        name=str(header["name"]),
        description=str(header["description"]).strip(),
        body=body.strip(),
        license=str(header.get("license", "")),
        compatibility=str(header.get("compatibility", "")),
        allowed_tools=str(header.get("allowed-tools", "")),
        metadata=dict(header.get("metadata", {})),  # type: ignore[call-overload]
    )


def write(document: Document) -> str:
    """The text of a SKILL.md; `parse` gives the same document back. Raises `UsageError` when the
    document is not valid."""
    header: dict[str, object] = {"name": document.name, "description": document.description}
    optional = {
        "license": document.license,
        "compatibility": document.compatibility,
        "allowed-tools": document.allowed_tools,
        "metadata": document.metadata,
    }
    header |= {key: value for key, value in optional.items() if value}
    front = _dump(header)
    if "---" in front:  # other readers take the first three hyphens for the end of it
        front = _dump(header, default_style='"').replace("---", r"\x2d\x2d\x2d")
    text = f"---\n{front}---\n\n{document.body.strip()}\n"
    parse(text)
    return text


def _dump(header: dict[str, object], default_style: str | None = None) -> str:
    return yaml.safe_dump(
        header, sort_keys=False, allow_unicode=True, default_flow_style=False, width=10**6,
        default_style=default_style,
    )  # fmt: skip


def to_skill(
    document: Document, *, parents: tuple[str, ...] = (), evidence: tuple[str, ...] = ()
) -> Skill:
    """The record of a document."""
    return Skill(
        name=document.name, description=document.description, document=write(document),
        parents=parents, evidence=evidence,
    )  # fmt: skip


def check(text: str, *, folder: str | None = None) -> list[str]:
    """What is wrong with a SKILL.md, empty when nothing is. `folder` is the name of the folder it
    lies in, which has to be its name."""
    header, _, problems = _front_matter(text)
    if problems:
        return problems
    problems = check_name(header.get("name"), folder)
    for unknown in sorted(str(key) for key in header if key not in FIELDS):
        problems.append(f"unknown field `{unknown[:60]}` (allowed: {', '.join(FIELDS)})")
    for key in ("description", "license", "compatibility", "allowed-tools"):
        if key in header or key == "description":
            problems += _check_text(key, header.get(key))
    metadata = header.get("metadata", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(part, str) for pair in metadata.items() for part in pair
    ):
        problems.append("`metadata` must map strings to strings (quote numbers and dates)")
    return problems


def check_name(name: object, folder: str | None = None) -> list[str]:
    """What is wrong with a skill's name. A valid one is safe as a folder name."""
    if not isinstance(name, str) or not 1 <= len(name) <= 64 or not _NAME.fullmatch(name):
        return [
            "`name` must be 1 to 64 lowercase letters, digits and single hyphens, "
            "neither first nor last a hyphen"
        ]
    if folder is not None and name != folder:
        return [f"`name` is `{name}` but its folder is `{folder[:64]}`; they must be equal"]
    return []


def _check_text(key: str, value: object) -> list[str]:
    limit = _LIMITS.get(key)
    if not isinstance(value, str) or not value.strip():
        return [f"`{key}` must be a text that is not empty"]
    if limit is not None and len(value) > limit:
        return [f"`{key}` has {len(value)} characters, at most {limit} allowed"]
    return []


def _front_matter(text: str) -> tuple[dict[str, object], str, list[str]]:
    """(fields, body, problems)."""
    if len(text) > MAX_DOCUMENT:
        return {}, "", [f"the file has {len(text)} characters, at most {MAX_DOCUMENT} allowed"]
    if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\r\t" for c in text):
        return {}, "", ["the file holds control characters or broken Unicode"]
    found = _SPLIT.match(text.replace("\r\n", "\n").removeprefix("\ufeff"))
    if found is None:
        return {}, "", ["the file must begin with front matter between two lines `---`"]
    front, body = found.group(1), found.group(2) or ""
    if len(front) > MAX_FRONT_MATTER:
        return {}, "", [f"the front matter is longer than {MAX_FRONT_MATTER} characters"]
    try:
        problem = _forbidden(front)
        if problem:
            return {}, "", [f"the front matter {problem}"]
        header = yaml.safe_load(front)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return {}, "", [f"the front matter is not YAML: {' '.join(str(error).split())[:200]}"]
    if not isinstance(header, dict):
        return {}, "", ["the front matter must be a mapping of fields"]
    return header, body, []


def _forbidden(front: str) -> str:
    """The first thing in the YAML that the format does not allow. Events are read one by one, so
    that deep nesting, on which the full parser is quadratic, is found before it costs anything."""
    depth = 0
    for event in yaml.parse(front):
        if isinstance(event, yaml.AliasEvent):
            return "uses YAML aliases, which are not allowed"
        if getattr(event, "tag", None) is not None:
            return "uses YAML tags (`!...`), which are not allowed"
        if isinstance(event, yaml.MappingStartEvent) and event.flow_style:
            return "uses YAML flow mappings (`{...}`), which are not allowed"
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > 3:
            return "is nested too deep"
    return ""
