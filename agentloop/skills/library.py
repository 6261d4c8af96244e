"""Curated skills on disk: `skills/<name>/SKILL.md` of every workspace root, and export to such a
folder.

Goes in: a workspace. Comes out: `Skill` records, the user's hiding carried ones of the same name.
A file that is not a valid skill, or a link that leads out of its root, is an error and not skipped:
a skill that silently does nothing is worse than none.
"""

from __future__ import annotations

import os
from pathlib import Path

from agentloop.errors import UsageError
from agentloop.records import Skill
from agentloop.skills.document import MAX_DOCUMENT, check, check_name, parse
from agentloop.workspace import Workspace


def curated(workspace: Workspace) -> list[Skill]:
    """All skills of the workspace by name. Raises `UsageError` naming the file that is wrong."""
    found: dict[str, Skill] = {}
    for root in reversed(workspace.roots):
        for path in sorted(root.glob("skills/*/SKILL.md")):
            if root.resolve() not in path.resolve().parents:
                raise UsageError(f"`{path}` is a link out of its workspace; copy the skill instead")
            skill = load(path)
            found[skill.name] = skill
    return [found[name] for name in sorted(found)]


def load(path: Path) -> Skill:
    """The skill in the file `path` (`.../<name>/SKILL.md`); raises `UsageError`."""
    try:
        if path.stat().st_size > 4 * MAX_DOCUMENT:
            raise UsageError(f"`{path}` is too large for a SKILL.md")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`{path}` cannot be read: {error}") from error
    problems = check(text, folder=path.parent.name)
    if problems:
        raise UsageError(f"`{path}` is not a valid skill: {'; '.join(problems)}")
    document = parse(text)
    return Skill(name=document.name, description=document.description, document=text)


def export(skill: Skill, folder: Path) -> Path:
    """Write the skill to `folder/<name>/SKILL.md` and return that path; writing the same again
    changes nothing. Raises `UsageError` for an invalid skill or when another is in its place."""
    problems = check_name(skill.name) or check(skill.document, folder=skill.name)
    if problems:
        raise UsageError(f"the skill cannot be exported: {'; '.join(problems)}")
    path = folder / skill.name / "SKILL.md"
    if path.exists():
        if path.read_text(encoding="utf-8") == skill.document:
            return path
        raise UsageError(f"`{path}` exists and differs; remove it first or give another folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(skill.document, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UsageError(f"`{path}` cannot be written: {error}") from error
    return path
