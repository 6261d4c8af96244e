"""The tables in the repository are what their results say; stale results are named."""

import shutil
from pathlib import Path

import pytest

from agentloop.checks import Results, digest, render_all
from agentloop.checks.render import BEGIN, END
from agentloop.workflows.load import load
from agentloop.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
READMES = [ROOT / "workflows" / "README.md", *sorted(ROOT.glob("workflows/*/README.md"))]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the content folders with its tables written anew."""
    root = tmp_path_factory.mktemp("rendered")
    for name in ("workflows", "graphs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    render_all(root)
    return root


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_table_is_what_rendering_writes(path: Path, rendered: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert BEGIN in text and END in text, "put the two markers where the table goes"
    again = (rendered / path.relative_to(ROOT)).read_text(encoding="utf-8")
    assert text == again, "run: python -m agentloop.checks --render"


def test_stale_results_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Not a failure: they are measured again with `python -m agentloop.checks --stale`."""
    stale = []
    for path in sorted(ROOT.glob("workflows/*/workflow.yaml")):
        loaded = load(str(path), Workspace((ROOT,)))
        results, current = Results.read(path.parent), digest(loaded)
        stale += [
            f"{loaded.name}:{check.id}" for check in loaded.spec.checks
            if results.result(check, current).stale
        ]  # fmt: skip
    with capsys.disabled():
        print(f"\nstale results: {', '.join(stale) or 'none'}", end=" ")
    for name in stale:
        workflow, check = name.split(":")
        table = (ROOT / "workflows" / workflow / "README.md").read_text(encoding="utf-8")
        [row] = [line for line in table.splitlines() if line.startswith(f"| {check} |")]
        assert ", stale |" in row
