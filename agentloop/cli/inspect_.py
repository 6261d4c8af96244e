"""Reading commands: `agentloop inspect NOUN [ID]`."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

import typer

from agentloop.cli import options as opt
from agentloop.cli import show
from agentloop.errors import UsageError
from agentloop.records import Bundle, Instruction, Policy, Skill

inspect = typer.Typer(help="Read what was logged and learned.", no_args_is_help=True)
Id = Annotated[str | None, typer.Argument(help="Show this one whole (a unique prefix will do).")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many rows, newest last.")]


def _archive(home: Any) -> Any:
    from agentloop.store.archive import Archive
    from agentloop.workspace import home as find_home

    return Archive(find_home(home, create=False))


@inspect.command()
def trajectories(
    id: Id = None, limit: Limit = 20, home: opt.Home = None, as_json: opt.AsJson = False,
    solved: Annotated[bool | None, typer.Option("--solved/--failed")] = None,
) -> int:  # fmt: skip
    """Rollouts: what the model saw, said and got."""
    from agentloop.store.query import Query

    archive = _archive(home)
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
    episodes = archive.episodes(Query(success=solved))[-limit:]
    rows = [
        (e.id, e.task.family, e.purpose, "solved" if e.success else
         e.failure.reason if e.failure else "failed", e.usage.calls, e.usage.tokens, e.answer or "")
        for e in episodes
    ]  # fmt: skip
    columns = ["id", "family", "purpose", "state", "calls", "tokens", "answer"]
    return _table("trajectories", columns, rows, as_json)


@inspect.command()
def skills(id: Id = None, home: opt.Home = None, as_json: opt.AsJson = False) -> int:
    """The skill library."""
    return _artifacts(
        Skill,
        id,
        home,
        as_json,
        ["id", "made", "name", "evidence", "description"],
        lambda s: (s.name, len(s.evidence), s.description),
        lambda s: s.document,
    )


@inspect.command()
def instructions(id: Id = None, home: opt.Home = None, as_json: opt.AsJson = False) -> int:
    """The instruction population: every version, with operator and parents."""
    return _artifacts(
        Instruction,
        id,
        home,
        as_json,
        ["id", "made", "operator", "parents", "evidence", "text"],
        lambda i: (i.operator, " ".join(i.parents), len(i.evidence), i.text[:80]),
        lambda i: i.text,
    )


@inspect.command()
def policies(id: Id = None, home: opt.Home = None, as_json: opt.AsJson = False) -> int:
    """Adapters of the local model."""

    def body(policy: Any) -> str:
        lines = [f"base {policy.base}", f"dataset {policy.dataset}", f"sha256 {policy.sha256}"]
        return "\n".join(lines + [f"{k} {v:.4g}" for k, v in policy.metrics.items()])

    return _artifacts(
        Policy,
        id,
        home,
        as_json,
        ["id", "made", "role", "dataset", "loss"],
        lambda p: (p.role, p.dataset, p.metrics.get("last_loss")),
        body,
    )


@inspect.command()
def bundles(id: Id = None, home: opt.Home = None, as_json: opt.AsJson = False) -> int:
    """Bundles: one version of each, and which serves."""

    def body(bundle: Any) -> str:
        lines = [f"instruction {bundle.instruction}"]
        lines += [f"skill {skill}" for skill in bundle.skills]
        return "\n".join(lines + [f"policy {role}: {p}" for role, p in bundle.policies.items()])

    return _artifacts(
        Bundle,
        id,
        home,
        as_json,
        ["id", "made", "instruction", "skills", "policy"],
        lambda b: (b.instruction, len(b.skills), b.policies.get("agent")),
        body,
    )


@inspect.command()
def decisions(id: Id = None, home: opt.Home = None, as_json: opt.AsJson = False) -> int:
    """Every verdict of the gate with its raw numbers; ID is a cycle."""
    archive = _archive(home)
    verdicts = archive.verdicts(id)
    if as_json:
        opt.print_json([show.json_ready(v) for v in verdicts])
        return 0
    rows = [
        (v.subject, "passed" if v.passed else "no", v.n, show.percent(v.champion_rate),
         show.percent(v.challenger_rate), show.points(v.effect),
         f"{show.points(v.ci95[0])} to {show.points(v.ci95[1])}", f"{v.p:.2g}",
         f"×{v.tokens_ratio:.2f}", v.reason)
        for v in verdicts
    ]  # fmt: skip
    columns = [
        "subject",
        "verdict",
        "n",
        "before",
        "after",
        "effect",
        "95 % CI",
        "p",
        "tokens",
        "why",
    ]
    return _table("decisions", columns, rows, False)


def _artifacts(
    kind: type[Any], id: str | None, home: Any, as_json: bool, columns: list[str], cells: Any, body: Any,
) -> int:  # fmt: skip
    archive = _archive(home)
    if id is not None:
        found_id = archive.id(id, kind)
        artifact = archive.get(found_id, kind)
        if as_json:
            opt.print_json({"id": found_id, **show.json_ready(artifact)})  # type: ignore[dict-item]
        else:
            show.tell(found_id, style="bold")
            show.console().print(show.clean(body(artifact), 20_000))
            _lineage(archive, kind, found_id)
        return 0
    entries = archive.artifacts(kind)
    serving = {row.bundle: name for name, row in archive.aliases().items()}
    title = "policies" if kind is Policy else f"{kind.__name__.lower()}s"
    if as_json:
        opt.print_json(
            [{"id": i, "alias": serving.get(i), **show.json_ready(a)} for i, a, _ in entries]
        )  # type: ignore[dict-item]
        return 0
    rows = [
        (f"{i} ← {serving[i]}" if i in serving else i, _when(at), *cells(a)) for i, a, at in entries
    ]
    return _table(title, columns, rows, False)


def _lineage(archive: Any, kind: type[Any], found_id: str) -> None:
    parents = {i: tuple(getattr(a, "parents", ())) for i, a, _ in archive.artifacts(kind)}
    if any(parents.values()):
        from agentloop.networks import tree

        show.console().print(show.clean(tree(parents, found_id)))


def _table(title: str, columns: list[str], rows: list[Any], as_json: bool) -> int:
    if as_json:
        opt.print_json([dict(zip(columns, row, strict=True)) for row in rows])
    elif not rows:
        show.tell(f"no {title} in this home yet; make some: agentloop cycle WORKFLOW", style="dim")
    else:
        show.console().print(show.table(title, columns, rows))
    return 0


def _when(at: float) -> str:
    return datetime.datetime.fromtimestamp(at).strftime("%m-%d %H:%M")
