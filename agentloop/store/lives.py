"""The lives of skill versions as rows of the log: a step in, what a version is now out.

Decision: a state is the last of append-only rows, numbered per version, so that of two processes
that decide from the same state one is told that it lost; a version and its first step are one
write, so none is ever there without its provenance.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentloop.records import Skill, SkillStep, artifact_id
from agentloop.store.log import Log
from agentloop.store.query import Draft, Query
from agentloop.trajectories.codec import from_json, to_json

_KIND = "skill_life"


class Lives:
    """What was decided about the skills of a log."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def begin(self, skills: Sequence[Skill], *, source: str, reason: str) -> list[tuple[str, bool]]:
        """Store versions in quarantine, tainted by their source, all or none; (id, whether it is
        new) of each. One that is known keeps its life."""
        known = self.states()
        drafts, told = [], []
        for skill in skills:
            name = artifact_id(skill)
            told.append((name, name not in known))
            if name not in known:
                step = SkillStep(
                    skill=name, state="quarantined", reason=reason, source=source, tainted=True
                )
                drafts.append(Draft(kind="skill", key=name, body=to_json(skill)))
                drafts.append(_draft(step, 1))
        self.log.append(drafts)
        return told

    def states(self) -> dict[str, SkillStep]:
        """The last step of every version that has any, by id."""
        entries = self.log.read(Query(kinds=(_KIND,)))
        return {step.skill: step for step in (from_json(SkillStep, one.body) for one in entries)}


def _draft(step: SkillStep, number: int) -> Draft:
    return Draft(kind=_KIND, key=f"{step.skill}#{number:06d}", body=to_json(step))
