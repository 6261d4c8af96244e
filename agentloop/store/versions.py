"""Versions and what points at them: artifacts by content, aliases by append-only rows.

Stored once and never changed, so going back is one new row. The face over both that the rest of the
package uses is `store.archive.Archive`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast, overload

from agentloop.errors import StoreError, UnknownName, UsageError
from agentloop.records import Artifact, Bundle, Json, artifact_id, kind_of
from agentloop.store.artifacts import KINDS, A, Pointer, artifact_of, find
from agentloop.store.lives import states
from agentloop.store.log import Log
from agentloop.store.query import Draft, Entry, Fences, Query
from agentloop.trajectories.codec import from_json, to_json


class Versions:
    """Artifacts and aliases in `log`."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def put(self, artifact: Artifact, *, scope: str = "", fence: Fences | None = None) -> str:
        """Store a version; its id. One with the same content keeps its first parents."""
        name = artifact_id(artifact)
        draft = Draft(kind=kind_of(artifact), key=name, body=to_json(artifact), scope=scope)
        self.log.append([draft], fence=fence)
        return name

    @overload
    def get(self, name: str) -> Artifact: ...
    @overload
    def get(self, name: str, kind: type[A]) -> A: ...
    def get(self, name: str, kind: Any = None) -> Any:
        """The artifact with this id or the only one whose id begins so, of `kind` when given.
        Raises `UnknownName`, or `UsageError` when several begin so."""
        return artifact_of(self._find(name, kind))

    def id(self, name: str, kind: type[A] | None = None) -> str:
        """The whole id that `name` begins; raises as `get` does."""
        return self._find(name, kind).key

    def artifacts(self, kind: type[A], scope: str | None = None) -> list[tuple[str, A, float]]:
        """(id, artifact, unix seconds) of all versions of a kind, in log order."""
        query = Query(kinds=(kind.__name__.lower(),), scope=scope)
        return [(e.key, from_json(kind, e.body), e.at) for e in self.log.read(query)]

    def point(
        self, alias: str, bundle: str, *, reason: str, scope: str, fence: Fences | None = None
    ) -> None:
        """Let `alias` (`<workflow>/champion`) point at a bundle from now on. Raises `UnknownName`
        when there is no such bundle, `StoreError` when another process moved it meanwhile."""
        moves = len(self.log.keys("alias", f"{alias}#"))
        body: dict[str, Json] = {"bundle": self.id(bundle, Bundle), "reason": reason}
        draft = Draft(kind="alias", key=_key(alias, moves + 1), body=body, scope=scope)
        self.move(draft, fence=fence)

    def retire(self, name: str, *, reason: str, fence: Fences | None = None) -> None:
        """Let alias `name` point at nothing from now on. Raises `UsageError` when it does not point
        anywhere, `StoreError` when another process moved it meanwhile."""
        now = self.alias(name)
        if now is None:
            raise UsageError(f"`{name}` points at no bundle; there is nothing to end")
        moves = len(self.log.keys("alias", f"{name}#"))
        body: dict[str, Json] = {"bundle": now.bundle, "reason": reason, "over": True}
        draft = Draft(kind="alias", key=_key(name, moves + 1), body=body, scope=now.scope)
        self.move(draft, fence=fence)

    def alias(self, name: str) -> Pointer | None:
        """Where an alias points; `None` when it never did, or was retired."""
        entry = self.log.latest("alias", f"{name}#")
        pointer = None if entry is None else _pointer(entry)
        return None if pointer is None or pointer.over else pointer

    def aliases(self) -> dict[str, Pointer]:
        """Every alias that points somewhere, and where."""
        entries = self.log.read(Query(kinds=("alias",)))
        found = {pointer.alias: pointer for pointer in map(_pointer, entries)}
        return {name: pointer for name, pointer in found.items() if not pointer.over}

    def alias_history(self, name: str) -> list[Pointer]:
        """All it pointed at, oldest first."""
        query = Query(kinds=("alias",), prefix=f"{name}#")
        return [_pointer(entry) for entry in self.log.read(query)]

    def rollback(
        self, name: str, *, reason: str = "rolled back", fence: Fences | None = None
    ) -> str:
        """Point an alias back at the bundle it had before the present one; that bundle's id. Done
        twice it goes back twice. Raises `UnknownName` and, with nothing before, `UsageError`."""
        earlier = self.before(name)
        history = self.alias_history(name)
        body: dict[str, Json] = {"bundle": earlier, "reason": reason, "back": True}
        key = _key(name, len(history) + 1)
        self.move(Draft(kind="alias", key=key, body=body, scope=history[-1].scope), fence=fence)
        return earlier

    def before(self, name: str) -> str:
        """The bundle that a rollback of alias `name` would serve; raises as it does."""
        history = self.alias_history(name)
        if not history:
            known = {key.rpartition("#")[0] for key in self.log.keys("alias")}
            raise UnknownName("alias", name, known)
        stack: list[str] = []
        refused = self._withheld()
        for pointer in history:
            if pointer.back and pointer.bundle in stack:
                del stack[stack.index(pointer.bundle) + 1 :]
            elif not stack or stack[-1] != pointer.bundle:
                stack.append(pointer.bundle)
        stack = [one for one in stack[:-1] if not self._holds(one, refused)] + stack[-1:]
        if len(stack) < 2:
            raise UsageError(
                f"`{name}` had no bundle before {stack[-1]}; see: agentloop inspect bundles"
            )
        return stack[-2]

    def move(self, *drafts: Draft, fence: Fences | None = None) -> None:
        """Append moves of aliases (`following`), and rows that belong to them, in one write. The
        number in a key makes it compare-and-append: of two processes that move an alias from the
        same state, one is told that it lost, by a `StoreError`. Raises `UsageError` for a bundle
        with a skill that may not be given to agents."""
        self._check(drafts)
        self.log.append(drafts, fence=fence)
        for draft in drafts:
            entry = self.log.get(draft.kind, draft.key)
            if entry is None or entry.body != self.log.redact(draft.body):
                raise StoreError(
                    f"`{draft.key.rpartition('#')[0]}` was moved by another process meanwhile; "
                    "look at it and try again"
                )

    def _check(self, drafts: tuple[Draft, ...]) -> None:
        made: dict[str, Any] = {one.key: one.body for one in drafts if one.kind == "bundle"}
        aimed = [cast(dict[str, Any], one.body) for one in drafts if one.kind == "alias"]
        targets = [one["bundle"] for one in aimed if not one.get("over")]
        withheld = self._withheld() if targets else {}
        for target in targets:
            skills = made[target].get("skills", ()) if target in made else None
            for name in self._holds(target, withheld, skills):
                raise UsageError(
                    f"{target} holds {name}, which is {withheld[name]}; it may not be served"
                )

    def _withheld(self) -> dict[str, str]:
        """Versions of skills that no agent may be given, and their states."""
        found = states(self.log).items()
        return {name: step.state for name, step in found if step.state != "promoted"}

    def _holds(
        self, bundle: str, names: Mapping[str, str], skills: Sequence[str] | None = None
    ) -> list[str]:
        if names and skills is None:
            entry = self.log.get("bundle", bundle)
            skills = () if entry is None else cast(dict[str, Any], entry.body).get("skills", ())
        return [one for one in skills or () if one in names]

    def _find(self, name: str, kind: type[Any] | None) -> Entry:
        return find(self.log, name, (kind.__name__.lower(),) if kind else tuple(KINDS))


def following(row: str, bundle: str, *, reason: str, scope: str, over: bool = False) -> Draft:
    """The move of an alias to a bundle, or with `over` to none, that follows its row `row`."""
    alias, _, number = row.rpartition("#")
    body: dict[str, Json] = {"bundle": bundle, "reason": reason}
    if over:
        body["over"] = True
    return Draft(kind="alias", key=_key(alias, int(number) + 1), body=body, scope=scope)


def _key(alias: str, number: int) -> str:
    if "#" in alias:
        raise UsageError(f"`{alias}` cannot name an alias; leave out the `#`")
    return f"{alias}#{number:06d}"


def _pointer(entry: Entry) -> Pointer:
    body: Any = entry.body
    return Pointer(
        alias=entry.key.rpartition("#")[0],
        bundle=body["bundle"],
        reason=body["reason"],
        scope=entry.scope,
        at=entry.at,
        back=body.get("back", False),
        over=body.get("over", False),
    )
