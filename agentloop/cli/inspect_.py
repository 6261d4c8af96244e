"""Reading commands: `agentloop inspect NOUN [ID]`.

Goes in: a home. Comes out: a table (ids shortened), one record whole, or JSON with everything.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentloop.cli import options as opt
from agentloop.cli import show
from agentloop.errors import UnknownName, UsageError
from agentloop.records import Bundle, Instruction, Json, Policy, Skill, Verdict

if TYPE_CHECKING:
    from agentloop.store.archive import Archive

inspect = typer.Typer(help="Read what was logged and learned.", no_args_is_help=True)
Id = Annotated[str | None, typer.Argument(help="Show this one whole (a unique prefix will do).")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many rows, newest last.")]
Solved = Annotated[
    bool | None, typer.Option("--solved/--failed", help="Only solved, or only failed ones.")
]


@inspect.command()
def trajectories(
    id: Id = None, limit: Limit = 20, solved: Solved = None, home: opt.Home = None,
    as_json: opt.AsJson = False,
) -> int:  # fmt: skip
    """Rollouts: what the model saw, said and got."""
    from agentloop.store.query import Query

    archive = opt.open_archive(home)
    if id is not None:
        episode = archive.episode(id)
        if episode is None:
            raise UsageError(
                f"there is no trajectory `{id}`; list them: agentloop inspect trajectories"
            )
        if as_json:
            opt.print_json(show.json_ready(episode))
        else:
            show.console().print(show.trace(episode))
        return 0
    last = archive.episodes(Query(success=solved, limit=limit, newest=True))
    episodes = last[::-1]
    states = [
        e.failure.reason if e.failure else "solved" if e.success else "failed" for e in episodes
    ]
    if as_json:
        opt.print_json([
            {"id": e.id, "task": e.task.id, "family": e.task.family, "purpose": e.purpose,
             "run": e.run, "bundle": e.bundle, "state": state, "calls": e.usage.calls,
             "tokens": e.usage.tokens, "answer": e.answer}
            for e, state in zip(episodes, states, strict=True)
        ])  # fmt: skip
        return 0
    rows = [
        (show.short(e.id), e.task.family, e.purpose, state, e.usage.calls, e.usage.tokens,
         show.line(e.answer or "", 40))
        for e, state in zip(episodes, states, strict=True)
    ]  # fmt: skip
    _table("trajectories", ["id", "family", "purpose", "state", "calls", "tokens", "answer"], rows)
    return 0


@dataclass(frozen=True)
class _Noun:
    """How one kind of artifact is shown."""

    kind: type[Any]
    title: str
    columns: Sequence[str]
    cells: Callable[[Any], Sequence[object]]
    body: Callable[[Any], str]


def _policy(policy: Policy) -> str:
    lines = [f"base {policy.base}", f"dataset {policy.dataset}", f"sha256 {policy.sha256}"]
    return "\n".join(lines + [f"{name} {value:.4g}" for name, value in policy.metrics.items()])


def _bundle(bundle: Bundle) -> str:
    lines = [f"instruction {bundle.instruction}"]
    lines += [f"skill {skill}" for skill in bundle.skills]
    return "\n".join(lines + [f"policy {role}: {name}" for role, name in bundle.policies.items()])


_SKILLS = _Noun(
    Skill, "skills", ("name", "from", "description"),
    lambda s: (s.name, len(s.evidence), show.line(s.description, 100)), lambda s: s.document,
)  # fmt: skip
_INSTRUCTIONS = _Noun(
    Instruction, "instructions", ("operator", "parent", "from", "text"),
    lambda i: (
        i.operator, " ".join(map(show.short, i.parents)), len(i.evidence), show.line(i.text, 100)
    ),
    lambda i: i.text,
)  # fmt: skip
_POLICIES = _Noun(
    Policy, "policies", ("role", "dataset", "loss"),
    lambda p: (p.role, show.short(p.dataset), p.metrics.get("last_loss")), _policy,
)  # fmt: skip
_BUNDLES = _Noun(
    Bundle, "bundles", ("instruction", "skills", "policy"),
    lambda b: (
        show.short(b.instruction), len(b.skills), show.short(b.policies.get("agent"))
    ),
    _bundle,
)  # fmt: skip


@inspect.command()
def skills(id: Id = None, home: opt.Home = None, as_json: opt.AsJson = False) -> int:
    """The skill library."""
    return _artifacts(_SKILLS, id, home, as_json)


@inspect.command()
def instructions(id: Id = None, home: opt.Home = None, as_json: opt.AsJson = False) -> int:
    """All instructions, with operator and parent."""
    return _artifacts(_INSTRUCTIONS, id, home, as_json)


@inspect.command()
def policies(id: Id = None, home: opt.Home = None, as_json: opt.AsJson = False) -> int:
    """Adapters of the local model."""
    return _artifacts(_POLICIES, id, home, as_json)


@inspect.command()
def bundles(id: Id = None, home: opt.Home = None, as_json: opt.AsJson = False) -> int:
    """Bundles: one version of each, and which serves."""
    return _artifacts(_BUNDLES, id, home, as_json)


@inspect.command()
def decisions(
    id: Annotated[str | None, typer.Argument(help="A cycle: with the reasons.")] = None,
    home: opt.Home = None, as_json: opt.AsJson = False,
) -> int:  # fmt: skip
    """The gate's verdicts with their numbers."""
    from agentloop.store.query import Query

    archive = opt.open_archive(home)
    cycles = {entry.key: entry.scope for entry in archive.read(Query(kinds=("cycle",)))}
    if id is not None:
        chosen = [key for key in cycles if key.startswith((id, f"cycle-{id}"))]
        if len(chosen) != 1:
            raise UnknownName("cycle", id, cycles)
        cycles = {chosen[0]: cycles[chosen[0]]}
    found = {cycle: archive.verdicts(cycle) for cycle in cycles}
    if as_json:
        opt.print_json([
            {"cycle": cycle, "workflow": cycles[cycle], **_json(verdict)}
            for cycle, verdicts in found.items() for verdict in verdicts
        ])  # fmt: skip
        return 0
    if not any(found.values()):
        _table("decisions", [], [])
    for cycle, verdicts in found.items():
        if verdicts:
            _decided(f"{cycle} of {cycles[cycle]}", verdicts, reasons=id is not None)
    return 0


def _decided(title: str, verdicts: Sequence[Verdict], *, reasons: bool) -> None:
    rows = [
        (_subject(v), "✓ passed" if v.passed else "✗ no", v.stopped,
         f"{v.n} of {v.planned}" if v.planned > v.n else v.n,
         f"{100 * v.champion_rate:.0f} → {show.percent(v.challenger_rate)}",
         f"{show.points(v.effect)} ({show.points(v.ci95[0])} to {show.points(v.ci95[1])})",
         f"{v.p:.1g}", f"×{v.tokens_ratio:.2f}")
        for v in verdicts
    ]  # fmt: skip
    columns = ["subject", "verdict", "why", "n", "solved", "effect, 95 % CI", "p", "tokens"]
    _table(title, columns, rows)
    if reasons:
        show.console().print(show.pairs((_subject(v), v.reason) for v in verdicts))


def _subject(verdict: Verdict) -> str:
    return "final" if verdict.final else verdict.subject.replace("joint-without-", "no ")


def _artifacts(noun: _Noun, id: str | None, home: Path | None, as_json: bool) -> int:
    archive = opt.open_archive(home)
    if id is not None:
        _one(archive, noun, archive.id(id, noun.kind), as_json)
        return 0
    entries = archive.artifacts(noun.kind)
    serving = {pointer.bundle: name for name, pointer in archive.aliases().items()}
    if as_json:
        opt.print_json([{"id": i, "alias": serving.get(i), **_json(a)} for i, a, _ in entries])
        return 0
    columns, serves = ["id", "made", *noun.columns], noun.kind is Bundle
    rows = [
        (show.short(i), _when(at), *noun.cells(a), *([serving.get(i, "")] if serves else []))
        for i, a, at in entries
    ]
    _table(noun.title, [*columns, "serves"] if serves else columns, rows)
    return 0


def _one(archive: Archive, noun: _Noun, found: str, as_json: bool) -> None:
    artifact = archive.get(found, noun.kind)
    if as_json:
        opt.print_json({"id": found, **_json(artifact)})
        return
    show.tell(found, style="bold")
    show.console().print(show.clean(noun.body(artifact), 20_000))
    if noun.kind is not Bundle:
        parents = {i: tuple(a.parents) for i, a, _ in archive.artifacts(noun.kind)}
        if any(parents.values()):
            from agentloop.networks import tree

            show.console().print(show.clean(tree(parents, found)))


def _json(artifact: object) -> dict[str, Json]:
    from dataclasses import asdict

    return asdict(artifact)  # type: ignore[call-overload, no-any-return]


def _table(title: str, columns: list[str], rows: list[Any]) -> None:
    if rows:
        show.console().print(show.table(title, columns, rows))
    else:
        show.tell(f"no {title} in this home yet; make some: agentloop cycle WORKFLOW", style="dim")


def _when(at: float) -> str:
    return datetime.datetime.fromtimestamp(at).strftime("%m-%d %H:%M")
