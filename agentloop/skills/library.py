"""Skills from folders and archives, and back: `<name>/SKILL.md` with what lies beside it.

Goes in: a workspace, a folder, an archive. Comes out: `Skill` records, the user's hiding carried
ones of the same name. What is not a valid skill, or a link that leads out of its root, is an error
and not skipped: a skill that silently does nothing is worse than none. Nothing in a skill is run
or imported here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from agentloop.errors import UnknownName, UsageError
from agentloop.records import Skill
from agentloop.skills.archives import read_archive, write_zip
from agentloop.skills.document import check, check_name, parse
from agentloop.skills.folders import read_folder, write_folder
from agentloop.skills.paths import collect, pack, skipped, unpack
from agentloop.workspace import Workspace

FILE = "SKILL.md"


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
    """The skill whose SKILL.md (`.../<name>/SKILL.md`) is at `path`; raises `UsageError`."""
    try:
        files = read_folder(path.parent)
    except UsageError as error:
        raise UsageError(f"the skill `{path}` cannot be read: {error}") from error
    return from_files(files, where=str(path), folder=path.parent.name)


def from_files(files: Mapping[str, bytes], *, where: str, folder: str | None = None) -> Skill:
    """The record of a skill's files. `where` names its SKILL.md in errors; `folder`, where it has
    one, must be its name. Raises `UsageError`."""
    try:
        files = collect(files.items())
        text = files[FILE].decode()
    except KeyError as error:
        raise UsageError(f"`{where}` is missing, so there is no skill") from error
    except ValueError as error:  # UTF-8, or a `UsageError` about a file
        raise UsageError(f"`{where}` cannot be read: {error}") from error
    problems = check(text, folder=folder)
    if problems:
        raise UsageError(f"`{where}` is not a valid skill: {'; '.join(problems)}")
    document = parse(text)
    return Skill(
        name=document.name, description=document.description, document=text,
        files={path: pack(data) for path, data in files.items() if path != FILE},
    )  # fmt: skip


def to_files(skill: Skill) -> dict[str, bytes]:
    """What lies in the folder of a skill. Raises `UsageError` for an invalid one."""
    problems = check_name(skill.name) or check(skill.document, folder=skill.name)
    if problems:
        raise UsageError(f"the skill cannot be exported: {'; '.join(problems)}")
    others = {path: unpack(text) for path, text in skill.files.items()}
    return collect({FILE: skill.document.encode(), **others}.items())


def gather(path: Path, names: Sequence[str] = ()) -> list[Skill]:
    """The skills in a folder of skills (`.claude/skills`), in one skill's folder or in an archive
    of either, by name; those called `names` when any are given. Raises `UsageError` when one is
    wrong or there is none, `UnknownName` for one that is not there."""
    there = _in_folder(path) if path.is_dir() else _in_archive(path)
    if not there:
        raise UsageError(f"there is no `{FILE}` in `{path}` or one folder below it")
    for name in names:
        if name not in there:
            raise UnknownName("skill", name, there)
    return [there[name]() for name in sorted(names or there)]


def digest(skills: Sequence[Skill]) -> str:
    """sha256 of the skills' files: what tells one import from another."""
    total = hashlib.sha256()
    for skill in skills:
        for path, data in to_files(skill).items():
            total.update(f"{skill.name}/{path}\0{len(data)}\0".encode() + data)
    return total.hexdigest()


def export(skill: Skill, folder: Path) -> Path:
    """Write the skill to `folder/<name>/` and return the path of its SKILL.md; writing the same
    again changes nothing. Raises `UsageError` for an invalid skill or when another is in its
    place, `StoreError` when it cannot be written."""
    files = to_files(skill)
    target = folder / skill.name
    try:
        write_folder(target, files)
    except FileExistsError as error:
        if read_folder(target) != files:
            raise UsageError(
                f"`{target}` exists and differs; remove it first or give another folder"
            ) from error
    return target / FILE


def export_zip(skills: Sequence[Skill], path: Path) -> Path:
    """Write the skills to a new archive, one folder each; raises as `export` does."""
    write_zip(path, {
        f"{skill.name}/{name}": data
        for skill in skills for name, data in to_files(skill).items()
    })  # fmt: skip
    return path


def _in_folder(path: Path) -> dict[str, Callable[[], Skill]]:
    """How to load each skill, so that one that is wrong does not keep others from being chosen."""
    path = path.absolute()
    try:
        folders = [path] if (path / FILE).exists() else sorted(path.iterdir())
    except OSError as error:
        raise UsageError(f"`{path}` cannot be read: {error.strerror}") from error
    return {
        folder.name: partial(load, folder / FILE)
        for folder in folders
        if (folder / FILE).exists() and (folder == path or not skipped(folder.name))
    }


def _in_archive(path: Path) -> dict[str, Callable[[], Skill]]:
    """Each SKILL.md that lies in no other skill's folder makes one of what is below it."""
    files = read_archive(path)
    folders = sorted(name.removesuffix(FILE) for name in files if f"/{name}".endswith(f"/{FILE}"))
    found: dict[str, Callable[[], Skill]] = {}
    for top in folders:
        if any(one != top and top.startswith(one) for one in folders):
            continue
        below = {name.removeprefix(top): files[name] for name in files if name.startswith(top)}
        folder = top.rstrip("/").rpartition("/")[2] or None
        make = partial(from_files, below, where=f"{path}:{top}{FILE}", folder=folder)
        name = folder or make().name
        if name in found:
            raise UsageError(f"`{path}` holds two skills called `{name}`; give one folder")
        found[name] = make
    return found
