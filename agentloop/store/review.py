"""Decisions about skills: test results, promotion, retirement, revocation; each is one write.

Goes in: an archive, a version or a source, a reason. Comes out: what changed. A version that is
withdrawn leaves every bundle that an alias points at in the same transaction as its own step, so a
process that is killed on the way has withdrawn all or nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from agentloop.errors import UnknownName, UsageError
from agentloop.networks import Parents, ancestors, descendants
from agentloop.records import (
    Bundle,
    Instruction,
    Skill,
    SkillState,
    SkillStep,
    Verdict,
    artifact_id,
)
from agentloop.store.lives import REVOKED, draft, history, made_of, states
from agentloop.store.query import Draft, Query
from agentloop.store.versions import Versions, following
from agentloop.trajectories.codec import from_json, to_json


@dataclass(frozen=True)
class Withdrawn:
    """What a decision took away: versions, and the aliases that were moved off them."""

    skills: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    callers: tuple[str, ...] = ()
    """Skills that call functions of these: in quarantine again, to be tested anew."""
    instructions: tuple[str, ...] = ()
    """Versions of instructions that came of the same source."""


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


def replaced(archive: Versions, name: str) -> list[str]:
    """The versions in service that this one was made of, as their revision or merger: what it
    takes the place of once it is promoted."""
    known = states(archive.log)
    parents = archive.get(name, Skill).parents
    return [one for one in parents if one in known and known[one].state == "promoted"]


def succeed(archive: Versions, name: str, *, reason: str, dry: bool = False) -> Withdrawn:
    """Retire what a promoted version takes the place of; wherever one of these is served, it is
    served instead. A process that is killed between promotion and this leaves both promoted and
    the old one served."""
    change: dict[str, SkillState] = dict.fromkeys(replaced(archive, name), "retired")
    return _withdraw(archive, _Change(change, dict.fromkeys(change, name)), reason, dry)


def retire(archive: Versions, name: str, *, reason: str, dry: bool = False) -> Withdrawn:
    """Give a version to no agent any more; it may be promoted again."""
    return _withdraw(archive, _Change({name: "retired"}), reason, dry)


def revoke(
    archive: Versions, source: str, *, reason: str, dry: bool = False, calls: Parents | None = None
) -> Withdrawn:
    """Take away all versions from a source (`file/<sha256>`, `run/<id>`, an episode, a version),
    and all that were made from these or from episodes that used them; an instruction that was
    gives way to the nearest before it that was not. `calls` has the ids of the skills that each
    skill calls: who calls one that was served goes back into quarantine. Raises `UnknownName`, and
    `UsageError` when no other instruction came before one that is served."""
    came, above = _lineage(archive)
    named = {one for names in came.values() for one in names if _is(source, one)}
    roots = {name for name, names in came.items() if names & named}
    if not roots:
        raise UnknownName("source", source, {one for all_ in came.values() for one in all_ if one})
    gone, known = descendants(above, roots), states(archive.log)
    texts = {name: one.parents for name, one, _ in archive.artifacts(Instruction)}
    change: dict[str, SkillState] = {name: "revoked" for name in gone if name not in texts}
    served = [name for name in change if name not in known or _was_served(archive, name)]
    below = descendants({**dict.fromkeys(change, ()), **(calls or {})}, served)
    change |= {name: "quarantined" for name in below if name not in change}
    instead: dict[str, str] = {}
    for name in set(gone) & texts.keys():
        before = [one for one in ancestors(texts, name) if one in texts and one not in gone]
        instead[name] = before[-1] if before else ""
    marks = [Draft(kind=REVOKED, key=one, body=reason) for one in sorted({*named, *instead})]
    new = [one for one in marks if archive.log.get(one.kind, one.key) is None]
    return _withdraw(archive, _Change(change, {}, instead, new), reason, dry)


def benefit(archive: Versions, name: str) -> str:
    """The key of a passed verdict on a bundle that had the version, against one that had not."""
    for entry in archive.log.read(Query(kinds=("verdict",))):
        verdict = from_json(Verdict, entry.body)
        sides = [archive.log.get("bundle", one) for one in (verdict.challenger, verdict.champion)]
        has = [name in _skills(one.body) if one else None for one in sides]
        if verdict.passed and verdict.subject == "skills" and has == [True, False]:
            return entry.key
    return ""


@dataclass(frozen=True)
class _Change:
    """New states of versions; what is served in the place of some; what replaces instructions, ""
    where nothing can; rows that say that something was revoked."""

    states: Mapping[str, SkillState]
    successors: Mapping[str, str] = field(default_factory=dict)
    instead: Mapping[str, str] = field(default_factory=dict)
    marks: list[Draft] = field(default_factory=list)


def _withdraw(archive: Versions, change: _Change, reason: str, dry: bool) -> Withdrawn:
    """Append the steps, the moves of aliases and the marks in one write."""
    known = states(archive.log)
    steps = [_after(known, name, state, reason) for name, state in change.states.items()]
    steps = [one for one in steps if replace(one, reason="") != _bare(known, one.skill)]
    drafts = [draft(archive.log, one) for one in steps]
    moved = []
    for alias, pointer in sorted(archive.aliases().items()):
        bundle = archive.get(pointer.bundle, Bundle)
        left = _left(bundle, change)
        if left != bundle:
            if not left.instruction:
                raise UsageError(
                    f"`{alias}` serves {bundle.instruction}, which has none before it; give it "
                    "another text first: agentloop instructions edit"
                )
            drafts += _moves(archive, alias, left, f"withdrawn: {reason}", pointer.scope)
            moved.append(alias)
    if drafts + change.marks and not dry:
        archive.move(*drafts, *change.marks)
    fresh = {one.key for one in change.marks}
    return Withdrawn(
        skills=tuple(one.skill for one in steps if one.state != "quarantined"),
        aliases=tuple(moved),
        callers=tuple(one.skill for one in steps if one.state == "quarantined"),
        instructions=tuple(sorted(fresh & change.instead.keys())),
    )


def _after(known: Mapping[str, SkillStep], name: str, state: SkillState, reason: str) -> SkillStep:
    """The next step of a version; one that is revoked stays so, and one that goes back into
    quarantine is tested and reviewed again."""
    step = known.get(name) or SkillStep(skill=name, state="promoted", reason="learned")
    if step.state == "revoked":
        return step
    if state == "quarantined":
        step = replace(step, tests=None, reviewed="", benefit="")
    return replace(step, state=state, reason=reason)


def _bare(known: Mapping[str, SkillStep], name: str) -> SkillStep | None:
    return replace(known[name], reason="") if name in known else None


def _left(bundle: Bundle, change: _Change) -> Bundle:
    """The bundle without what is withdrawn, with what takes its place."""
    kept = [change.successors.get(one, one) for one in bundle.skills]
    return replace(
        bundle,
        instruction=change.instead.get(bundle.instruction, bundle.instruction),
        skills=tuple(dict.fromkeys(one for one in kept if one not in change.states)),
    )


def _lineage(archive: Versions) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Of each skill and instruction: the names that it can be revoked by, and what it was made
    of, which includes what was in use in the episodes that it was made from."""
    known = states(archive.log)
    made: dict[str, Skill | Instruction] = {
        **{name: one for name, one, _ in archive.artifacts(Skill)},
        **{name: one for name, one, _ in archive.artifacts(Instruction)},
    }
    came, above = {}, {}
    for name, one in made.items():
        came[name] = {name, *one.evidence}
        if name in known:
            came[name].add(known[name].source)
        used = set(one.parents)
        for episode in one.evidence:
            run, parts = made_of(archive.log, episode)
            came[name] |= {run} - {""}
            used |= parts
        above[name] = used & made.keys() - {name}
    return came, above


def _was_served(archive: Versions, name: str) -> bool:
    return any(one.state == "promoted" for one in history(archive.log, name))


def _moves(
    archive: Versions, alias: str, bundle: Bundle, reason: str, scope: str
) -> Iterator[Draft]:
    name = artifact_id(bundle)
    if archive.log.get("bundle", name) is None:
        yield Draft(kind="bundle", key=name, body=to_json(bundle), scope=scope)
    row = archive.log.latest("alias", f"{alias}#")
    assert row is not None  # it was just read
    yield following(row.key, name, reason=reason, scope=scope)


def _is(source: str, one: str) -> bool:
    """Whether `source` names `one`, whole or by a beginning that is long enough to mean it."""
    return one == source or (len(source) >= 12 and one.startswith(source))


def _skills(body: Any) -> set[str]:
    return set(body.get("skills", ()))
