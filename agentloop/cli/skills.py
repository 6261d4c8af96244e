"""Commands on skills: list, show, validate, diff, import, export.

Goes in: ids, names of curated skills, folders and archives. Comes out: lines for a person, or one
JSON document. Nothing in a skill is run here, and what is imported lies in quarantine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentloop.cli import options as opt
from agentloop.cli import show
from agentloop.errors import UsageError

if TYPE_CHECKING:
    from agentloop.records import Json, Skill, SkillStep

skills = typer.Typer(help="The skill library.", no_args_is_help=True)
Ref = Annotated[
    str, typer.Argument(help="A skill's id, a curated one's name, a folder or an archive.")
]


@skills.command("list", short_help="Curated skills, and versions with their state.")
def list_(
    like: Annotated[
        str | None, typer.Option("--like", help="The ten nearest to this, by words and meaning.")
    ] = None,
    usage: Annotated[
        bool, typer.Option("--usage", help="How often each was given, and solved with.")
    ] = False,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Only those that say the same as another.")
    ] = False,
    home: opt.Home = None, workspace: opt.Space = None, as_json: opt.AsJson = False,
) -> int:  # fmt: skip
    """Curated skills, and the versions in the log with their state."""
    from agentloop.skills.library import curated
    from agentloop.workspace import Workspace, home_path

    rows = [("", "curated", one) for one in curated(Workspace.find(workspace))]
    used: dict[str, tuple[int, int]] = {}
    if (home_path(home) / "log.db").is_file():
        found, used = _logged(home, usage)
        rows += found
    if duplicates:
        rows = _alike(rows)
    if like is not None:
        rows = _nearest(rows, like)
    if as_json:
        opt.print_json([
            {"id": i or None, "state": state, "name": one.name, "description": one.description,
             "files": len(one.files), "evidence": len(one.evidence),
             **(dict(zip(("given", "solved"), used.get(i, (0, 0)), strict=True)) if usage else {})}
            for i, state, one in rows
        ])  # fmt: skip
        return 0
    columns = [
        "id",
        "state",
        "name",
        "files",
        "from",
        *(["solved"] if usage else []),
        "description",
    ]
    show.console().print(show.table("skills", columns, [
        (show.short(i) if i else "–", state, one.name, len(one.files), len(one.evidence),
         *(["{1} of {0}".format(*used.get(i, (0, 0)))] if usage else []),
         show.line(one.description, 100))
        for i, state, one in rows
    ]))  # fmt: skip
    return 0


@skills.command("show", short_help="A skill, and what a reviewer should look at.")
def show_(
    ref: Ref, home: opt.Home = None, workspace: opt.Space = None, as_json: opt.AsJson = False
) -> int:
    """A skill: its SKILL.md, its files and functions, and what a reviewer should look at."""
    from dataclasses import asdict

    from agentloop.skills.functions import functions, problems
    from agentloop.skills.scan import scan

    skill = _find(ref, home, workspace)
    offered, wrong, advice = functions(skill), problems(skill), scan(skill)
    life, lineage = _life(skill, home)
    if as_json:
        opt.print_json({
            **asdict(skill), "life": [asdict(one) for one in life], "problems": wrong,
            "functions": [asdict(one) for one in offered],
            "advice": [asdict(one) for one in advice],
        })  # fmt: skip
        return 0
    show.tell(skill.name, style="bold")
    show.console().print(show.clean(skill.document, 20_000))
    if skill.files:
        show.console().print(show.pairs((path, _size(text)) for path, text in skill.files.items()))
    if offered:
        show.console().print(show.pairs((one.signature, one.doc) for one in offered))
    for problem in wrong:
        show.tell(f"✗ {problem}", style="red")
    if lineage:
        show.console().print(show.clean(lineage))
    if life:
        show.console().print(show.pairs((one.state, one.reason) for one in life))
    if advice:
        rows = [(f"{one.path}:{one.line}", one.kind, one.detail) for one in advice]
        title = "advice: look at these before you trust it"
        show.console().print(show.table(title, ["where", "kind", "what"], rows))
    return 0


@skills.command(short_help="Check skills against the specification.")
def validate(
    paths: Annotated[list[Path], typer.Argument(help="Folders or archives of skills.")],
    as_json: opt.AsJson = False,
) -> int:
    """Check skills against the Agent Skills specification; 1 when one is wrong."""
    from agentloop.skills.library import gather

    told: list[Json] = []
    for path in paths:
        try:
            names: list[Json] = [skill.name for skill in gather(path)]
            told.append({"path": str(path), "ok": True, "skills": names, "problem": ""})
        except UsageError as error:
            told.append({"path": str(path), "ok": False, "skills": [], "problem": str(error)})
    ok = all(isinstance(one, dict) and one["ok"] for one in told)
    if as_json:
        opt.print_json(told)
        return 0 if ok else 1
    for one in told:
        assert isinstance(one, dict)
        if one["ok"]:
            show.tell(f"✓ {one['path']}: {', '.join(map(str, one['skills']))}")  # type: ignore[arg-type]
        else:
            show.tell(f"✗ {one['problem']}", style="red")
    return 0 if ok else 1


@skills.command()
def diff(
    old: Ref, new: Ref, home: opt.Home = None, workspace: opt.Space = None,
    as_json: opt.AsJson = False,
) -> int:  # fmt: skip
    """What differs between two skills, file by file."""
    import difflib

    from agentloop.skills.library import FILE

    before, after = (_find(ref, home, workspace) for ref in (old, new))
    sides = [{FILE: one.document, **one.files} for one in (before, after)]
    lines = [
        line
        for path in sorted(sides[0].keys() | sides[1].keys())
        for line in difflib.unified_diff(
            sides[0].get(path, "").splitlines(), sides[1].get(path, "").splitlines(),
            f"{old}/{path}", f"{new}/{path}", lineterm="",
        )
    ]  # fmt: skip
    if as_json:
        opt.print_json({"same": not lines, "diff": "\n".join(lines)})
        return 0
    for line in lines:
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        show.tell(line, style=style)
    if not lines:
        show.tell("no difference")
    return 0


@skills.command("import", short_help="Put other agents' skills into quarantine.")
def import_(
    source: Annotated[Path, typer.Option("--from", help="A folder (.claude/skills) or archive.")],
    names: Annotated[list[str] | None, typer.Argument(help="Only these.", metavar="NAME")] = None,
    home: opt.Home = None, as_json: opt.AsJson = False, dry_run: opt.DryRun = False,
) -> int:  # fmt: skip
    """Put the skills of another agent into quarantine; nothing in them is run."""
    from agentloop.records import SkillStep
    from agentloop.skills.library import digest, gather
    from agentloop.skills.scan import scan
    from agentloop.store.archive import Archive
    from agentloop.store.lives import begin
    from agentloop.workspace import home as find_home

    found = gather(source, names or ())
    told: list[tuple[str, bool]] = [("", True)] * len(found)
    mark = f"file/{digest(found)}"
    if not dry_run:
        with Archive(find_home(home)) as archive:
            step = SkillStep(
                skill="", state="quarantined", reason=f"imported from {source}", source=mark,
                tainted=True,
            )  # fmt: skip
            told = begin(archive.log, found, step)
    advice = [len(scan(one)) for one in found]
    rows: list[Json] = [
        {"id": i or None, "name": one.name, "files": len(one.files), "new": new, "source": mark,
         "advice": count}
        for (i, new), one, count in zip(told, found, advice, strict=True)
    ]  # fmt: skip
    if as_json:
        opt.print_json({"skills": rows, "done": not dry_run})
        return 0
    for (name, new), one, count in zip(told, found, advice, strict=True):
        state = "would import" if dry_run else "quarantined" if new else "known already"
        look = f"{count} things to look at: agentloop skills show {name or one.name}"
        show.tell(f"{state}: {one.name} {show.short(name) if name else ''}".rstrip())
        if count:
            show.tell(f"  {look}", style="yellow")
    return 0


@skills.command("export", short_help="Write a skill for other agents.")
def export_(
    id: Annotated[str, typer.Argument(help="A skill's id, or a curated one's name.")],
    folder: Annotated[Path, typer.Argument(help="Where to write NAME/SKILL.md, or a new *.zip.")],
    home: opt.Home = None, workspace: opt.Space = None, dry_run: opt.DryRun = False,
) -> int:  # fmt: skip
    """Write a skill as an Agent Skills folder, or an archive of it, for other agents."""
    from agentloop.skills.library import export, export_zip

    skill = _find(id, home, workspace)
    packed = folder.suffix == ".zip"
    if dry_run:
        show.tell(f"would write {folder if packed else folder / skill.name / 'SKILL.md'}")
        return 0
    show.tell(f"wrote {export_zip([skill], folder) if packed else export(skill, folder)}")
    return 0


def _find(ref: str, home: Path | None, workspace: Path | None) -> Skill:
    """What a reference means: a path that is there, else a curated name, else an id in the log."""
    from agentloop.records import Skill
    from agentloop.skills.library import curated, gather
    from agentloop.workspace import Workspace

    path = Path(ref)
    if path.exists():
        found = gather(path)
        if len(found) > 1:
            raise UsageError(f"`{ref}` holds {len(found)} skills; give the folder of one")
        return found[0]
    by_name = {one.name: one for one in curated(Workspace.find(workspace))}
    if ref in by_name:
        return by_name[ref]
    with opt.open_archive(home) as archive:
        return archive.get(ref, Skill)


def _logged(
    home: Path | None, usage: bool
) -> tuple[list[tuple[str, str, Skill]], dict[str, tuple[int, int]]]:
    from agentloop.records import Skill
    from agentloop.store import lives

    with opt.open_archive(home) as archive:
        known = lives.states(archive.log)
        rows = [
            (name, str(known[name].state) if name in known else "learned", skill)
            for name, skill, _ in archive.artifacts(Skill)
        ]
        return rows, lives.usage(archive.log) if usage else {}


def _life(skill: Skill, home: Path | None) -> tuple[list[SkillStep], str]:
    """The decisions about a version and the tree of its parents, where a log has it."""
    from agentloop.networks import tree
    from agentloop.records import Skill, artifact_id
    from agentloop.store import lives
    from agentloop.workspace import home_path

    name = artifact_id(skill)
    if not (home_path(home) / "log.db").is_file():
        return [], ""
    with opt.open_archive(home) as archive:
        parents = {one: tuple(known.parents) for one, known, _ in archive.artifacts(Skill)}
        lineage = tree(parents, name) if parents.get(name) else ""
        return lives.history(archive.log, name), lineage


def _alike(rows: list[tuple[str, str, Skill]]) -> list[tuple[str, str, Skill]]:
    from agentloop.skills.kinship import duplicates
    from agentloop.store.embed import WordLlamaEmbedder

    library = {str(at): row[2] for at, row in enumerate(rows) if row[1] != "revoked"}
    found = duplicates(library, WordLlamaEmbedder())
    return [rows[int(at)] for cluster in found for at in cluster]


def _nearest(rows: list[tuple[str, str, Skill]], text: str) -> list[tuple[str, str, Skill]]:
    from agentloop.skills.search import Finder
    from agentloop.store.embed import WordLlamaEmbedder

    found = Finder([(str(at), row[2]) for at, row in enumerate(rows)], WordLlamaEmbedder())
    return [rows[int(at)] for at, _, _ in found.pick(text, 10)]


def _size(text: str) -> str:
    from agentloop.skills.paths import unpack

    return f"{len(unpack(text))} bytes"
