"""Artifacts and their ids: what a version is, by content.

Equal content has one id, whoever made it and whenever: an instruction is its text, a skill its
name and document, a policy its base, weights and role, a bundle its ids, a dataset its rows and
how they were chosen. Parents and evidence are kept with the first that was stored.
"""

from __future__ import annotations

from typing import TypeAlias, TypeVar

from agentloop.errors import UnknownName, UsageError
from agentloop.records import (
    Artifact,
    Bundle,
    Dataset,
    Instruction,
    Policy,
    Skill,
    record,
)
from agentloop.store.log import Log
from agentloop.store.query import Entry
from agentloop.trajectories.codec import from_json

A = TypeVar("A", Instruction, Skill, Policy, Bundle, Dataset)
Kind: TypeAlias = type[Instruction] | type[Skill] | type[Policy] | type[Bundle] | type[Dataset]
KINDS: dict[str, Kind] = {
    "instruction": Instruction,
    "skill": Skill,
    "policy": Policy,
    "bundle": Bundle,
    "dataset": Dataset,
}


@record
class Pointer:
    """Where an alias points since `at` (Unix seconds)."""

    alias: str
    bundle: str
    reason: str
    scope: str
    at: float
    back: bool = False
    """Made by a rollback."""
    over: bool = False
    """It was retired: it points at nothing any more."""


def artifact_of(entry: Entry) -> Artifact:
    """The artifact that an entry holds."""
    return from_json(KINDS[entry.kind], entry.body)


_PREFIX = {"episode": "ep"}
"""Where an id does not begin with its kind."""


def find(log: Log, name: str, kinds: tuple[str, ...]) -> Entry:
    """The entry whose key is `name`, or the only one whose key (`skill-3f2a…`) or hex digits
    (`3f2a…`) begin with it. Raises `UnknownName`, and `UsageError` when there are several."""
    entry = look_up(log, name, kinds)
    if entry is None:
        kind = name.partition("-")[0]
        chosen = (kind,) if kind in kinds else kinds
        known = [key for kind in chosen for key in log.keys(kind)]
        raise UnknownName(chosen[0] if len(chosen) == 1 else "artifact", name, known)
    return entry


def look_up(log: Log, name: str, kinds: tuple[str, ...]) -> Entry | None:
    """`find` that gives `None` for an unknown name, without reading all the names there are."""
    kind = name.partition("-")[0]
    chosen = (kind,) if kind in kinds else kinds
    for kind in chosen:
        if (entry := log.get(kind, name)) is not None:
            return entry
    matches = [
        (kind, key)
        for kind in chosen
        for prefix in {name, f"{_PREFIX.get(kind, kind)}-{name}"}
        if name
        for key in log.keys(kind, prefix)
    ]
    if len(matches) > 1:
        some = ", ".join(key for _, key in matches[:5])
        raise UsageError(f"`{name}` could be any of {some}; give more of the id")
    return log.get(*matches[0]) if matches else None
