"""Decisions about skills: test results, promotion, retirement, revocation; each is one write.

Goes in: an archive, a version or a source, a reason. Comes out: what changed. A version that is
withdrawn leaves every bundle that an alias points at in the same transaction as its own step, so a
process that is killed on the way has withdrawn all or nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from agentloop.errors import UnknownName, UsageError
from agentloop.networks import descendants
from agentloop.records import (
    Bundle,
    Skill,
    SkillState,
    SkillStep,
    Verdict,
    artifact_id,
)
from agentloop.store.lives import REVOKED, draft, states
from agentloop.store.query import Draft, Query
from agentloop.store.versions import Versions, following
from agentloop.trajectories.codec import from_json, to_json


@dataclass(frozen=True)
class Withdrawn:
    """What a decision took away: versions, and the aliases that were moved off them."""

    skills: tuple[str, ...]
    aliases: tuple[str, ...] = ()


def decide(archive: Versions, step: SkillStep) -> None:
    """Append a step about a version. Raises `StoreError` when another process decided meanwhile."""
    archive.move(draft(archive.log, step))


def promote(
    archive: Versions, name: str, *, reason: str, reviewed: str = "", dry: bool = False
) -> SkillStep:
    """Let a version be given to agents. A person who read it may vouch for it as `reviewed`; else
    it must be of clean descent and have helped on held-out tasks. Raises `UsageError` that says
    what is missing."""
    step = states(archive.log).get(name)
    if step is None:
        raise UsageError(f"`{name}` has no life yet: it is used as its bundle was promoted")
    step = replace(
        step, reviewed=reviewed or step.reviewed, benefit=step.benefit or benefit(archive, name)
    )
    if step.obstacle:
        raise UsageError(f"`{name}` cannot be promoted: {step.obstacle}")
    step = replace(step, state="promoted", reason=reason)
    if not dry:
        decide(archive, step)
    return step


def retire(archive: Versions, name: str, *, reason: str, dry: bool = False) -> Withdrawn:
    """Give a version to no agent any more; it may be promoted again."""
    return _withdraw(archive, [name], "retired", reason, None if dry else [])


def revoke(archive: Versions, source: str, *, reason: str, dry: bool = False) -> Withdrawn:
    """Take away all versions from a source (`file/<sha256>`, `run/<id>`, an episode, a version),
    and all that were made from these or from episodes that used them. Raises `UnknownName`."""
    skills = {name: skill for name, skill, _ in archive.artifacts(Skill)}
    known, came = states(archive.log), dict[str, set[str]]()
    above: dict[str, set[str]] = {}
    for name, skill in skills.items():
        came[name] = {name, *skill.evidence}
        if name in known:
            came[name].add(known[name].source)
        above[name] = set(skill.parents) & skills.keys()
        for episode in skill.evidence:
            entry = archive.log.get("episode", episode)
            if entry is not None:
                body: Any = entry.body
                came[name].add(f"run/{body['run']}")
                above[name] |= set(body.get("skills", ())) & skills.keys() - {name}
    roots = {name for name, names in came.items() if any(_is(source, one) for one in names)}
    if not roots:
        raise UnknownName(
            "source", source, {one for names in came.values() for one in names if one}
        )
    named = {one for names in came.values() for one in names if _is(source, one)}
    marks = [Draft(kind=REVOKED, key=one, body=reason) for one in sorted(named)]
    return _withdraw(archive, descendants(above, roots), "revoked", reason, None if dry else marks)


def benefit(archive: Versions, name: str) -> str:
    """The key of a passed verdict on a bundle that had the version, against one that had not."""
    for entry in archive.log.read(Query(kinds=("verdict",))):
        verdict = from_json(Verdict, entry.body)
        sides = [archive.log.get("bundle", one) for one in (verdict.challenger, verdict.champion)]
        has = [name in _skills(one.body) if one else None for one in sides]
        if verdict.passed and verdict.subject == "skills" and has == [True, False]:
            return entry.key
    return ""


def _withdraw(
    archive: Versions, names: Collection[str], state: SkillState, reason: str,
    marks: list[Draft] | None,
) -> Withdrawn:  # fmt: skip
    """Append the steps, the moves of aliases and `marks` in one write; nothing without marks."""
    known = states(archive.log)
    gone = [
        name for name in names if name not in known or known[name].state not in (state, "revoked")
    ]
    drafts = [
        draft(archive.log, replace(_life(known, name), state=state, reason=reason)) for name in gone
    ]
    moved = []
    for alias, pointer in sorted(archive.aliases().items()):
        bundle = archive.get(pointer.bundle, Bundle)
        if set(bundle.skills) & set(names):
            left = replace(
                bundle, skills=tuple(one for one in bundle.skills if one not in set(names))
            )
            drafts += _moves(archive, alias, left, f"{state}: {reason}", pointer.scope)
            moved.append(alias)
    if drafts and marks is not None:
        archive.move(*drafts, *(one for one in marks if archive.log.get(one.kind, one.key) is None))
    return Withdrawn(tuple(gone), tuple(moved))


def _moves(
    archive: Versions, alias: str, bundle: Bundle, reason: str, scope: str
) -> Iterator[Draft]:
    name = artifact_id(bundle)
    if archive.log.get("bundle", name) is None:
        yield Draft(kind="bundle", key=name, body=to_json(bundle), scope=scope)
    row = archive.log.latest("alias", f"{alias}#")
    assert row is not None  # it was just read
    yield following(row.key, name, reason=reason, scope=scope)


def _life(known: dict[str, SkillStep], name: str) -> SkillStep:
    return known.get(name) or SkillStep(skill=name, state="promoted", reason="learned")


def _is(source: str, one: str) -> bool:
    """Whether `source` names `one`, whole or by a beginning that is long enough to mean it."""
    return one == source or (len(source) >= 12 and one.startswith(source))


def _skills(body: Any) -> set[str]:
    return set(body.get("skills", ()))
