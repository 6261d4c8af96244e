"""The life of a skill version: where it came from and what was decided about it, step by step."""

from __future__ import annotations

from typing import Literal, TypeAlias

from agentloop.records.base import record

SkillState: TypeAlias = Literal["quarantined", "promoted", "retired", "revoked"]
"""Only what is promoted may be given to an agent. What was revoked stays so."""


@record
class SkillTests:
    """What came of running the examples and cases of a skill in a sandbox."""

    run: int
    """How many there were; a skill of words alone has none."""
    failed: int
    sandbox: str
    problems: tuple[str, ...] = ()
    """Why, and what else keeps it from being used."""


@record
class SkillStep:
    """A decision; the last one about a version holds all that is known of it."""

    skill: str
    """Id of the version."""
    state: SkillState
    reason: str
    source: str = ""
    """Where the version came from: `run/<id>` or `file/<sha256>`; what `revoke` is asked by."""
    messages: tuple[str, ...] = ()
    """Hashes of the messages that it was made from."""
    tainted: bool = False
    """Made by or from what nobody vouches for: only a person's review promotes it."""
    tests: SkillTests | None = None
    benefit: str = ""
    """The verdict that found it to help on held-out tasks."""
    reviewed: str = ""
    """Who read it and vouches for it."""

    @property
    def obstacle(self) -> str:
        """Why it cannot be promoted, and what would change that; empty when it can."""
        if self.state == "revoked":
            return "it was revoked, which is for good"
        if self.state == "promoted":
            return "it is promoted already"
        if self.tests is None:
            return "it was not tested; run: agentloop skills test"
        if self.tests.failed or self.tests.problems:
            return f"its tests fail: {'; '.join(self.tests.problems)[:200]}"
        if self.reviewed:
            return ""
        if self.tainted:
            return "it comes from where nobody vouches; read it, then give --reviewed-by YOU"
        if not self.benefit:
            return "no held-out benefit was found; read it, then give --reviewed-by YOU"
        return ""
