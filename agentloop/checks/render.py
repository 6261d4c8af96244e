"""Tables from results: the one in a workflow's README and the index `workflows/README.md`.

Goes in: a workspace's folder. Comes out: those files, rewritten between two markers only; the
prose around them is a person's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from agentloop.checks.results import CheckResult, Results, digest
from agentloop.workflows.load import Loaded, load
from agentloop.workspace import Workspace

BEGIN, END = "<!-- results: written by `agentloop check` -->", "<!-- end of results -->"


def readme_table(loaded: Loaded) -> str:
    """Markdown: one line per check, and when and from which code it was measured."""
    results = Results.read(loaded.folder)
    rows = [
        (one.id, one.tier, f"{one.metric} {one.op} {one.bar:g}", one.summary(), one.met(),
         f"{one.seconds:.0f}", one.source)
        for one in _all(loaded, results)
    ]  # fmt: skip
    lines = _table(("check", "tier", "bar", "reached", "met", "seconds", "source"), rows)
    commits = sorted({run["commit"] for run in results.runs.values() if run["commit"]})
    dates = sorted({run["at"] for run in results.runs.values()})
    if dates:
        lines += ["", f"Measured {', '.join(dates)} at commit {', '.join(commits) or 'unknown'}."]
    return "\n".join(lines)


def index_table(root: Path) -> str:
    """Markdown: one line per workflow folder of `root`."""
    rows = []
    for loaded in _workflows(root):
        spec = loaded.spec
        rows.append(
            (f"[{loaded.name}]({loaded.name}/README.md)", spec.seed_paper, spec.claim or spec.title,
             spec.faithful, spec.reduced, f"`agentloop cycle {loaded.name}`",
             _reached(_all(loaded, Results.read(loaded.folder))))
        )  # fmt: skip
    columns = ("workflow", "seed", "claim", "faithful", "reduced", "command", "reached")
    return "\n".join(_table(columns, rows))


def render(loaded: Loaded) -> None:
    """Rewrite the tables that show this workflow's results."""
    _rewrite(loaded.folder / "README.md", readme_table(loaded))
    root = loaded.folder.parent.parent
    _rewrite(root / "workflows" / "README.md", index_table(root))


def render_all(root: Path) -> None:
    """Rewrite all tables of a workspace, without measuring anything."""
    for loaded in _workflows(root):
        _rewrite(loaded.folder / "README.md", readme_table(loaded))
    _rewrite(root / "workflows" / "README.md", index_table(root))


def _workflows(root: Path) -> list[Loaded]:
    space = Workspace((root,))
    return [load(str(path), space) for path in sorted(root.glob("workflows/*/workflow.yaml"))]


def _all(loaded: Loaded, results: Results) -> list[CheckResult]:
    current = digest(loaded)
    return [results.result(check, current) for check in loaded.spec.checks]


def _reached(checks: list[CheckResult]) -> str:
    """The number of the first check that was run, and how many are met."""
    first = next((one for one in checks if one.values), None)
    if first is None:
        return "not run" if checks else ""
    met = f"{sum(one.ok for one in checks)} of {len(checks)} checks met"
    stale = ", some stale" if any(one.stale for one in checks) else ""
    return f"{first.metric} {first.summary()}; {met}{stale}"


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    cells = [[_cell(one) for one in row] for row in rows]
    lines = [columns, tuple("---" for _ in columns), *cells]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split()) or "–"


def _rewrite(path: Path, table: str) -> None:
    """Put `table` between the markers of the file at `path`, if it is there and has them."""
    if not path.is_file():
        return
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
