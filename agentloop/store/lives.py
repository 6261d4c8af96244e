"""The lives of skill versions as rows of the log: a step in, what a version is now out.

Decision: a state is the last of append-only rows, numbered per version, so that of two processes
that decide from the same state one is told that it lost; a version and its first step are one
write, so none is ever there without its provenance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agentloop.errors import UsageError
from agentloop.records import Skill, SkillStep, artifact_id
from agentloop.store.log import Log
from agentloop.store.query import Draft, Query
from agentloop.trajectories.codec import from_json, to_json

_KIND = "skill_life"
REVOKED = "revoked_source"
"""Kind of the row that says that nothing more is taken from the source that is its key."""


def states(log: Log) -> dict[str, SkillStep]:
    """The last step of every version that has any, by id."""
    return {step.skill: step for step in _steps(log)}


def history(log: Log, skill: str) -> list[SkillStep]:
    """All steps of a version, oldest first."""
    return list(_steps(log, f"{skill}#"))


def begin(log: Log, skills: Sequence[Skill], step: SkillStep) -> list[tuple[str, bool]]:
    """Store versions in quarantine, all or none, each with `step` under its own id; (id, whether it
    is new) of each. One that is known keeps its life, and one made from a tainted version is
    tainted. Raises `UsageError` when the source, or a version it was made from, was revoked."""
    known = states(log)
    drafts, told = [], []
    if log.get(REVOKED, step.source) is not None:
        raise UsageError(f"`{step.source}` was revoked; nothing more is taken from it")
    for skill in skills:
        name = artifact_id(skill)
        told.append((name, name not in known))
        above = [known[parent] for parent in skill.parents if parent in known]
        if any(one.state == "revoked" for one in above):
            raise UsageError(f"`{skill.name}` was made from a version that was revoked; leave it")
        if name not in known:
            tainted = step.tainted or any(one.tainted and not one.reviewed for one in above)
            first = replace(step, skill=name, state="quarantined", tainted=tainted)
            drafts += [Draft(kind="skill", key=name, body=to_json(skill)), draft(log, first)]
    log.append(drafts)
    return told


def draft(log: Log, step: SkillStep) -> Draft:
    """The row of a step that follows the last one of its version."""
    number = len(log.keys(_KIND, f"{step.skill}#")) + 1
    return Draft(kind=_KIND, key=f"{step.skill}#{number:06d}", body=to_json(step))


def _steps(log: Log, prefix: str = "") -> list[SkillStep]:
    return [
        from_json(SkillStep, entry.body) for entry in log.read(Query(kinds=(_KIND,), prefix=prefix))
    ]
