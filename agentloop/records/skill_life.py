"""The life of a skill version: where it came from and what was decided about it, step by step."""

from __future__ import annotations

from typing import Literal, TypeAlias

from agentloop.records.base import record

SkillState: TypeAlias = Literal["quarantined", "promoted", "retired", "revoked"]
"""Only what is promoted may be given to an agent. What was revoked stays so."""


@record
class SkillStep:
    """A decision; the last one about a version is its state."""

    skill: str
    """Id of the version."""
    state: SkillState
    reason: str
    source: str = ""
    """Where the version came from: `run/<id>` or `file/<sha256>`; what `revoke` is asked by."""
    tainted: bool = False
    """Made by or from what nobody vouches for: only a person's review promotes it."""
