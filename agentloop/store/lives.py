"""The lives of skill versions as rows of the log: a step in, what a version is now out.

Decision: a state is the last of append-only rows, numbered per version, so that of two processes
that decide from the same state one is told that it lost; a version and its first step are one
write, so none is ever there without its provenance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from agentloop.errors import UsageError
from agentloop.records import Episode, Skill, SkillStep, artifact_id, content_id
from agentloop.store.exchange import foreign
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
    tainted. Raises `UsageError` when the source, or anything it was made from, was revoked."""
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
        for episode in skill.evidence:
            if gone := revoked_in(log, episode):
                raise UsageError(
                    f"`{skill.name}` was made from {episode}, which came of `{gone}`; that was "
                    "revoked: leave it"
                )
        if name not in known:
            tainted = step.tainted or any(one.tainted and not one.reviewed for one in above)
            first = replace(step, skill=name, state="quarantined", tainted=tainted)
            drafts += [Draft(kind="skill", key=name, body=to_json(skill)), draft(log, first)]
    log.append(drafts)
    return told


def origin(log: Log, skill: Skill) -> SkillStep:
    """The first step of a skill that was made from episodes of the log: their run, hashes of their
    messages, and whether any of it comes from where nobody vouches: a user of `serve`, another
    home, an episode that is not there, a skill that was tainted itself."""
    known, messages, runs = states(log), dict[str, None](), set[str]()
    tainted = not skill.evidence
    for name in skill.evidence:
        entry = log.get("episode", name)
        if entry is None:
            tainted = True
            continue
        episode = from_json(Episode, entry.body)
        runs.add(episode.run)
        used = [known[one] for one in episode.skills if one in known]
        tainted |= episode.purpose == "serve" or foreign(log, episode.run)
        tainted |= any(one.tainted and not one.reviewed for one in used)
        for trajectory in episode.trajectories:
            messages |= dict.fromkeys(content_id("message", n.message) for n in trajectory.nodes)
    return SkillStep(
        skill="", state="quarantined", source=f"run/{'+'.join(sorted(runs))}", tainted=tainted,
        messages=tuple(messages), reason=f"learned from {len(skill.evidence)} episodes",
    )  # fmt: skip


def made_of(log: Log, episode: str) -> tuple[str, set[str]]:
    """`run/<id>` of an episode, and the versions that were in use in it: skills and instruction;
    nothing of one that is not in the log."""
    entry = log.get("episode", episode)
    if entry is None:
        return "", set()
    body: Any = entry.body
    bundle = log.get("bundle", body["bundle"])
    text = {cast(Any, bundle.body)["instruction"]} if bundle else set()
    return f"run/{body['run']}", {*body.get("skills", ()), *text}


def revoked_in(log: Log, episode: str) -> str:
    """What of an episode was revoked: itself, its run, a skill or the instruction that was in use;
    empty when nothing was."""
    run, parts = made_of(log, episode)
    for name in (episode, run, *sorted(parts)):
        steps = _steps(log, f"{name}#")
        if log.get(REVOKED, name) is not None or (steps and steps[-1].state == "revoked"):
            return name
    return ""


def usage(log: Log) -> dict[str, tuple[int, int]]:
    """Id -> (episodes that it was given to, how many of these were solved); reads all episodes."""
    found: dict[str, tuple[int, int]] = {}
    for entry, score in log.scored(Query(kinds=("episode",))):
        body: Any = entry.body
        told: Any = (body.get("score") if score is None else cast(Any, score.body)["score"]) or {}
        for name in body.get("skills", ()):
            given, solved = found.get(name, (0, 0))
            found[name] = given + 1, solved + bool(told.get("success"))
    return found


def draft(log: Log, step: SkillStep) -> Draft:
    """The row of a step that follows the last one of its version."""
    number = len(log.keys(_KIND, f"{step.skill}#")) + 1
    return Draft(kind=_KIND, key=f"{step.skill}#{number:06d}", body=to_json(step))


def _steps(log: Log, prefix: str = "") -> list[SkillStep]:
    return [
        from_json(SkillStep, entry.body) for entry in log.read(Query(kinds=(_KIND,), prefix=prefix))
    ]
