"""Sizes and docstrings: the bounds of the house, read off the syntax trees."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for folder in ("agentloop", "graphs", "workflows", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
SHIPPED = [path for path in FILES if path.relative_to(ROOT).parts[0] != "tests"]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree(path)) if isinstance(node, kinds)]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_sizes(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    long = [(f.name, n) for f in functions(path) if (n := (f.end_lineno or 0) - f.lineno + 1) > 60]
    assert not long


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_shape_of_shipped_code(path: Path) -> None:
    module = tree(path)
    assert ast.get_docstring(module), "a module says what comes in and what goes out"
    large = [
        node.name for node in ast.walk(module)
        if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno + 1 > 200
    ]  # fmt: skip
    assert not large
    if path.relative_to(ROOT).parts[1] != "cli":  # a command's options are its parameters
        wide = [f.name for f in functions(path) if parameters(f) > 6 and f.name != "__init__"]
        assert not wide


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    named = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len([one for one in named if one.arg not in ("self", "cls")])


def test_public_definitions_have_docstrings() -> None:
    missing = [
        f"{path.relative_to(ROOT)}:{node.name}"
        for path in SHIPPED
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not missing


def test_papers_are_named_only_in_workflows() -> None:
    """Code names mechanisms; a paper's name belongs to its folder."""
    folders = {path.parent.name for path in (ROOT / "workflows").glob("*/workflow.yaml")}
    named = [
        (str(path.relative_to(ROOT)), name)
        for path in (ROOT / "agentloop").rglob("*.py")
        for name in folders - {"quickstart"}
        if re.search(rf"\b{name}\b", path.read_text(encoding="utf-8"))
    ]
    assert not named
