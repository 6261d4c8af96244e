"""A toy's results are stale once a shipped module that it goes through was changed: all of them are
named by the workflow."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from workflow_folder import ROOT, folder, toy_checks

from agentloop.workflows.load import load
from agentloop.workspace import Workspace

STAGES = ("agentloop.training.", "agentloop.datasets.", "agentloop.rewards.")
SLUGS = [
    path.parent.name
    for path in sorted(ROOT.glob("workflows/*/measures.py"))
    if toy_checks(path.parent.name)
]


def file_of(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


def imported(path: Path) -> set[str]:
    """Modules of the stages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
    return {name for name in found if name.startswith(STAGES) and file_of(name).is_file()}


@pytest.mark.parametrize("slug", SLUGS)
def test_what_a_toy_goes_through_is_named(slug: str) -> None:
    left = set().union(*(imported(path) for path in folder(slug).glob("*.py")))
    found: set[str] = set()
    while left:
        found |= left
        left = set().union(*(imported(file_of(name)) for name in left)) - found
    named = load(str(folder(slug)), Workspace((ROOT,))).spec.modules
    assert sorted(found - set(named)) == []
