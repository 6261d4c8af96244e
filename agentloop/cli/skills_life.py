"""Commands on the life of skills: learn, revise, merge, test, promote, retire, revoke.

Goes in: a version or a source. Comes out: what was decided. Only a sandbox runs anything of a
skill, and only a person vouches for what came from elsewhere.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentloop.cli import options as opt
from agentloop.cli import show
from agentloop.cli.skills import skills
from agentloop.errors import UsageError

if TYPE_CHECKING:
    from agentloop.records import Json, Skill, SkillTests
    from agentloop.store.archive import Archive
    from agentloop.store.review import Withdrawn

__all__ = ["skills"]
Id = Annotated[str, typer.Argument(help="A skill's id.")]
Why = Annotated[str, typer.Option("--reason", help="Kept with the decision.")]


@skills.command(short_help="Make skills from a run's successes.")
def learn(
    run: Annotated[str, typer.Argument(help="A run's or cycle's id.")],
    home: opt.Home = None, as_json: opt.AsJson = False, dry_run: opt.DryRun = False,
) -> int:  # fmt: skip
    """Make a skill from each kind of task that a run solved twice or more, into quarantine."""
    from agentloop.records import Skill
    from agentloop.skills.induce import cluster, induce
    from agentloop.skills.scan import scan
    from agentloop.store.embed import WordLlamaEmbedder
    from agentloop.store.lives import begin, origin, revoked_in, states
    from agentloop.store.query import Query

    with opt.open_archive(home) as archive:
        solved = archive.episodes(Query(run=run, success=True))
        if not solved:
            raise UsageError(f"`{run}` has no solved rollouts; see: agentloop runs list")
        solved = [one for one in solved if not revoked_in(archive.log, one.id)]
        groups = cluster(solved, WordLlamaEmbedder())
        known = states(archive.log)
        library = {
            one: archive.get(one, Skill) for one, step in known.items() if step.state == "promoted"
        }
        made: list[Skill] = []
        for group in groups:
            others = [one for other in groups if other is not group for one in other]
            names = [one.name for one in made]
            skill = induce(group, others=others, taken=names, library=library)
            made += [] if skill is None else [skill]
        told = []
        for skill in [] if dry_run else made:
            step = origin(archive.log, skill)  # what a reviewer is told about waits for one
            step = replace(step, tainted=step.tainted or bool(scan(skill)))
            told += begin(archive.log, [skill], step)
    rows = [
        {"id": told[at][0] if told else None, "name": one.name, "evidence": len(one.evidence)}
        for at, one in enumerate(made)
    ]
    if as_json:
        opt.print_json({"skills": rows, "done": not dry_run})
        return 0
    for row in rows:
        verb = "would learn" if dry_run else "quarantined"
        show.tell(f"{verb}: {row['name']} from {row['evidence']} episodes {row['id'] or ''}")
    if not rows:
        show.tell("no kind of task was solved twice")
    return 0


@skills.command(short_help="Put a changed version of a skill into quarantine.")
def revise(
    name: Annotated[str, typer.Argument(help="A promoted skill's name or id.")],
    changed: Annotated[Path, typer.Option("--from", help="Folder or archive of what it becomes.")],
    home: opt.Home = None, as_json: opt.AsJson = False, dry_run: opt.DryRun = False,
) -> int:  # fmt: skip
    """Put a changed version into quarantine; the old one serves until this one is promoted."""
    from agentloop.records import SkillStep, artifact_id
    from agentloop.skills.library import digest, gather
    from agentloop.store.lives import begin

    with opt.open_archive(home) as archive:
        old, before = _in_service(archive, name)
        [found] = gather(changed, [before.name])
        made = replace(found, parents=(old,))
        if artifact_id(made) == old:
            raise UsageError(f"`{changed}` is what {old} is already; change it first")
        step = SkillStep(
            skill="", state="quarantined", reason=f"revised from {changed}",
            source=f"file/{digest([found])}", tainted=True,
        )  # fmt: skip
        [(id, new)] = [("", True)] if dry_run else begin(archive.log, [made], step)
    if as_json:
        opt.print_json({"id": id or None, "parents": [old], "new": new, "done": not dry_run})
        return 0
    verb = "would revise" if dry_run else "quarantined" if new else "known already"
    show.tell(f"{verb}: {made.name} {id}".rstrip())
    return 0


@skills.command(short_help="Make one skill of two, into quarantine.")
def merge(
    left: Id, right: Id,
    home: opt.Home = None, as_json: opt.AsJson = False, dry_run: opt.DryRun = False,
) -> int:  # fmt: skip
    """Make one version of two, with the examples and files of both, under the first one's name."""
    from agentloop.records import Skill, SkillStep
    from agentloop.skills import kinship
    from agentloop.store.lives import begin

    with opt.open_archive(home) as archive:
        names = [archive.id(one, Skill) for one in (left, right)]
        first, second = ((name, archive.get(name, Skill)) for name in names)
        made = kinship.merge(first, second)
        step = SkillStep(skill="", state="quarantined", reason="merged", source=f"merge/{names[0]}")
        [(name, new)] = [("", True)] if dry_run else begin(archive.log, [made], step)
    if as_json:
        opt.print_json({"id": name or None, "parents": names, "new": new, "done": not dry_run})
    else:
        show.tell(f"{'would merge' if dry_run else 'quarantined'}: {made.name} {name}".rstrip())
    return 0


@skills.command(short_help="Run a skill's examples and cases in a sandbox.")
def test(
    id: Id,
    sandbox: Annotated[str, typer.Option("--sandbox", help="A folder of sandboxes/.")] = "monty",
    home: opt.Home = None, workspace: opt.Space = None, as_json: opt.AsJson = False,
) -> int:  # fmt: skip
    """Run a skill's worked examples and the cases beside its functions; 1 when one fails."""
    from agentloop.records import Skill
    from agentloop.store import lives, review

    with opt.open_archive(home) as archive:
        name = archive.id(id, Skill)
        step = lives.states(archive.log).get(name)
        found = asyncio.run(_tested(archive, name, sandbox, workspace))
        if step is not None and step.state != "revoked":
            told = f"{found.run - found.failed} of {found.run} passed in {sandbox}"
            review.decide(archive, replace(step, tests=found, reason=f"tested: {told}"))
    good = not found.failed and not found.problems
    if as_json:
        opt.print_json({"id": name, "ok": good, **asdict(found)})
        return 0 if good else 1
    passed = found.run - found.failed
    show.tell(f"{passed} of {found.run} passed in {sandbox}", style="green" if good else "bold red")
    for problem in found.problems:
        show.tell(f"  {problem}")
    return 0 if good else 1


@skills.command(short_help="Let a tested skill be given to agents.")
def promote(
    id: Id,
    reviewed_by: Annotated[
        str, typer.Option("--reviewed-by", help="You read it all and vouch for it.")
    ] = "",
    reason: Why = "promoted by a person",
    home: opt.Home = None, as_json: opt.AsJson = False, dry_run: opt.DryRun = False,
) -> int:  # fmt: skip
    """Let a tested skill be given to agents: of use on held-out tasks, or vouched for by you. It
    takes the place of the versions in service that it was made of."""
    from agentloop.records import Skill
    from agentloop.store import lives, review

    with opt.open_archive(home) as archive:
        name = archive.id(id, Skill)
        step = lives.states(archive.log).get(name)
        if step is None or step.state != "promoted" or not review.replaced(archive, name):
            step = review.promote(archive, name, reason=reason, reviewed=reviewed_by, dry=dry_run)
        gone = review.succeed(archive, name, reason=f"{name} takes its place", dry=dry_run)
    if as_json:
        opt.print_json({**asdict(step), "replaces": list(gone.skills), "done": not dry_run})
        return 0
    show.tell(f"{'would be' if dry_run else 'is'} promoted: {name}", style="bold")
    return _told(gone, "retired", as_json, dry_run) if gone.skills else 0


@skills.command()
def retire(
    id: Id, reason: Why = "retired by a person",
    home: opt.Home = None, as_json: opt.AsJson = False, dry_run: opt.DryRun = False,
) -> int:  # fmt: skip
    """Take a skill out of what is served; it may be promoted again."""
    from agentloop.records import Skill
    from agentloop.store import review

    with opt.open_archive(home) as archive:
        gone = review.retire(archive, archive.id(id, Skill), reason=reason, dry=dry_run)
    return _told(gone, "retired", as_json, dry_run)


@skills.command(short_help="Take away all that came of a source, for good.")
def revoke(
    source: Annotated[str, typer.Option("--source", help="file/SHA, run/ID, an episode, a skill.")],
    reason: Why = "revoked by a person",
    home: opt.Home = None, as_json: opt.AsJson = False, dry_run: opt.DryRun = False,
) -> int:  # fmt: skip
    """Take away, in one transaction and for good, all skills and instructions from a source and
    all made of them; skills that call theirs go back into quarantine."""
    from agentloop.records import Skill
    from agentloop.skills.functions import callers
    from agentloop.store import review

    with opt.open_archive(home) as archive:
        calls = callers({name: skill for name, skill, _ in archive.artifacts(Skill)})
        gone = review.revoke(archive, source, reason=reason, dry=dry_run, calls=calls)
    return _told(gone, "revoked", as_json, dry_run)


def _told(gone: Withdrawn, state: str, as_json: bool, dry_run: bool) -> int:
    if as_json:
        opt.print_json({**asdict(gone), "done": not dry_run})
        return 0
    verb = f"would be {state}" if dry_run else state
    for name in (*gone.skills, *gone.instructions):
        show.tell(f"{verb}: {name}")
    for name in gone.callers:
        show.tell(f"{'would be' if dry_run else 'is'} quarantined, as it calls these: {name}")
    for alias in gone.aliases:
        show.tell(f"{alias} {'would serve' if dry_run else 'serves'} without them", style="bold")
    if not (gone.skills or gone.instructions or gone.callers or gone.aliases):
        show.tell(f"nothing is left to be {state}")
    return 0


def _in_service(archive: Archive, ref: str) -> tuple[str, Skill]:
    """The promoted version that a name or an id means; raises `UsageError`, `UnknownName`."""
    from agentloop.records import Skill
    from agentloop.store.lives import states

    promoted = {
        one: archive.get(one, Skill)
        for one, step in states(archive.log).items() if step.state == "promoted"
    }  # fmt: skip
    found = [one for one, skill in promoted.items() if skill.name == ref]
    if len(found) > 1:
        raise UsageError(f"{' and '.join(found)} are both `{ref}`; give the id of one")
    name = found[0] if found else archive.id(ref, Skill)
    if name not in promoted:
        raise UsageError(f"{name} is not promoted; import the changed one instead")
    return name, promoted[name]


async def _tested(archive: Archive, name: str, sandbox: str, workspace: Path | None) -> SkillTests:
    from functools import partial

    from agentloop.lanes.skills import run_tool
    from agentloop.records import Skill, Task
    from agentloop.rewards.split import grade, hidden_tests
    from agentloop.sandboxes.profile import open_sandbox
    from agentloop.skills.trial import trial
    from agentloop.store.lives import states
    from agentloop.workspace import Workspace

    promoted = {one for one, step in states(archive.log).items() if step.state == "promoted"}
    promoted -= set(archive.get(name, Skill).parents)  # it is tested in their place
    library = {one: archive.get(one, Skill) for one in sorted({*promoted, name})}
    opened = open_sandbox(sandbox, Workspace.find(workspace))

    async def graded(code: str, tests: dict[str, Json]) -> str:
        try:
            hidden = hidden_tests(Task(id=name, prompt="", data={"tests": tests}))
        except UsageError as error:
            return str(error)
        outcome = await grade(opened, code, hidden)
        return "" if outcome.passed else outcome.why

    try:
        return await trial(
            name, library, sandbox=sandbox, run_code=partial(run_tool, opened), grade=graded
        )
    finally:
        await opened.close()
