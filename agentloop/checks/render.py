"""Tables from results: the one in a workflow's README and the index `workflows/README.md`.

Only what stands between the two markers is written; the prose around is a person's.
"""

from __future__ import annotations

from pathlib import Path

from agentloop.checks.results import CheckResult, Results, digest
from agentloop.workflows.load import Loaded, load
from agentloop.workspace import Workspace

BEGIN, END = "<!-- results: written by `agentloop check` -->", "<!-- end of results -->"


def readme_table(loaded: Loaded, results: Results) -> str:
    """Markdown: one line per check."""
    current = digest(loaded)
    lines = [
        "| check | tier | bar | reached | met | seconds | source |",
        "|---|---|---|---|---|--:|---|",
    ]
    for check in loaded.spec.checks:
        one = results.result(check, current)
        lines.append(
            f"| {one.id} | {one.tier} | {one.metric} {one.op} {one.bar:g} | {one.summary()} "
            f"| {_met(one)} | {one.seconds:.0f} | {one.source} |"
        )
    commits = sorted({run["commit"] for run in results.runs.values() if run["commit"]})
    dates = sorted({run["at"] for run in results.runs.values()})
    if dates:
        lines += ["", f"Measured {', '.join(dates)} at commit {', '.join(commits) or 'unknown'}."]
    return "\n".join(lines)


def _met(result: CheckResult) -> str:
    if not result.values:
        return "not run"
    return "yes" if result.ok else "no"


def render_readme(loaded: Loaded, results: Results) -> None:
    """Rewrite the table in the workflow's README, if the README has the markers."""
    path = loaded.folder / "README.md"
    if path.is_file():
        path.write_text(
            _between(path.read_text(encoding="utf-8"), readme_table(loaded, results)),
            encoding="utf-8",
        )


def index_table(space: Workspace) -> str:
    """Markdown: one line per workflow folder that carries a claim."""
    lines = ["| workflow | claim | command | reached |", "|---|---|---|---|"]
    for name, path in sorted(space.workflows().items()):
        loaded = load(name, space)
        results = Results.read(path.parent)
        current = digest(loaded)
        numbers = [results.result(check, current) for check in loaded.spec.checks]
        measured = [one for one in numbers if one.values]
        reached = (
            f"{sum(one.ok for one in measured)} of {len(numbers)} checks met" if numbers else "–"
        )
        title = loaded.spec.claim or loaded.spec.title
        lines.append(
            f"| [{name}]({name}/README.md) | {title} | `agentloop cycle {name}` | {reached} |"
        )
    return "\n".join(lines)


def render_index(space: Workspace, root: Path) -> None:
    """Rewrite the table in `workflows/README.md` of `root`."""
    path = root / "workflows" / "README.md"
    path.write_text(
        _between(path.read_text(encoding="utf-8"), index_table(space)), encoding="utf-8"
    )


def render_all(space: Workspace, root: Path) -> None:
    """All tables of a workspace, without measuring anything."""
    for name in space.workflows():
        loaded = load(name, space)
        render_readme(loaded, Results.read(loaded.folder))
    render_index(space, root)


def _between(text: str, table: str) -> str:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        return text
    return f"{before}{BEGIN}\n{table}\n{END}{after}"
