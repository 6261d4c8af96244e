"""Executable skills: typed functions in `scripts/*.py`, read as syntax trees and never imported.

Goes in: skills. Comes out: their functions with signature and docstring, which skills call which,
the tests that lie beside them (`tests/*.json`: a function, and cases of arguments and what they
must give), and one program of a skill and all it calls, for a sandbox.
"""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Iterator, Mapping

from agentloop.errors import UsageError
from agentloop.networks import ancestors
from agentloop.records import Json, Skill, record

MAX_SCRIPT = 200_000
"""Characters of one script; the syntax tree of as many takes 100 MB at most."""
_TYPES = frozenset({"int", "float", "str", "bool", "None", "list", "dict"})
"""What goes through JSON and comes back the same; a tuple does not."""
_STATEMENTS = (ast.FunctionDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)


@record
class Function:
    """A function that a skill offers."""

    name: str
    signature: str
    """`area(radius: float, unit: str = 'm') -> float`"""
    doc: str
    path: str
    line: int
    problems: tuple[str, ...] = ()
    """Why an agent cannot be given it: no types, none that JSON has, no docstring."""


@record
class Script:
    """What one file defines and needs."""

    functions: tuple[Function, ...] = ()
    defines: frozenset[str] = frozenset()
    """All names at its top level."""
    needs: frozenset[str] = frozenset()
    """Names that are called in it, and neither defined there nor Python's own."""
    problems: tuple[str, ...] = ()


@record
class Cases:
    """Tests of one function, in the shape that the split grader takes."""

    function: str
    cases: tuple[dict[str, Json], ...] = ()
    tolerance: float = 0.0


def functions(skill: Skill) -> list[Function]:
    """The public functions of a skill's scripts, by path and line."""
    return [function for _, script in _scripts(skill) for function in script.functions]


def problems(skill: Skill) -> list[str]:
    """Why a skill with scripts cannot be offered as functions; empty when it can, or has none."""
    found = [f"{path}: {text}" for path, script in _scripts(skill) for text in script.problems]
    found += [
        f"{one.path}:{one.line} `{one.name}` {text}"
        for one in functions(skill) for text in one.problems
    ]  # fmt: skip
    try:
        known = {one.name for one in functions(skill)}
        for one in cases(skill):
            if one.function not in known:
                found.append(f"there is a test of `{one.function}`, which no script defines")
    except UsageError as error:
        found.append(str(error))
    return found


def dependencies(library: Mapping[str, Skill]) -> dict[str, tuple[str, ...]]:
    """Id -> ids of the skills whose functions it calls, for each skill of a library. Raises
    `UsageError` when two skills define a function that a third calls."""
    scripts = {name: [script for _, script in _scripts(skill)] for name, skill in library.items()}
    offered: dict[str, list[str]] = {}
    for name, skill in library.items():
        for function in functions(skill):
            offered.setdefault(function.name, []).append(name)
    found: dict[str, tuple[str, ...]] = {}
    for name, parts in scripts.items():
        own = {one for script in parts for one in script.defines}
        needs = {one for script in parts for one in script.needs} - own
        for need in sorted(needs & offered.keys()):
            if len(offered[need]) > 1:
                owners = ", ".join(f"`{library[one].name}`" for one in offered[need])
                raise UsageError(
                    f"`{library[name].name}` calls `{need}`, which {owners} define; retire one"
                )
        found[name] = tuple(sorted({offered[need][0] for need in needs & offered.keys()}))
    return found


def callers(library: Mapping[str, Skill]) -> dict[str, set[str]]:
    """Id -> ids of all skills that define a function it calls, whichever of several is meant: for
    finding who may have used one, where `dependencies` is for running them."""
    offered: dict[str, set[str]] = {}
    scripts = {name: [script for _, script in _scripts(skill)] for name, skill in library.items()}
    for name, parts in scripts.items():
        for script in parts:
            for function in script.functions:
                offered.setdefault(function.name, set()).add(name)
    found: dict[str, set[str]] = {}
    for name, parts in scripts.items():
        own = {one for script in parts for one in script.defines}
        needs = {one for script in parts for one in script.needs} - own
        found[name] = {one for need in needs & offered.keys() for one in offered[need]}
    return found


def program(name: str, library: Mapping[str, Skill]) -> str:
    """The scripts of a skill and of all it calls, these first, as one source. Raises `UsageError`
    when skills call each other in a circle, or define one name twice."""
    order = [*ancestors(dependencies(library), name), name]
    owner: dict[str, str] = {}
    parts: list[str] = []
    for one in order:
        for path, script in _scripts(library[one]):
            for defined in sorted(script.defines):
                if owner.setdefault(defined, one) != one:
                    raise UsageError(
                        f"`{library[one].name}` and `{library[owner[defined]].name}` both define "
                        f"`{defined}`; rename one"
                    )
            parts.append(library[one].files[path].rstrip() + "\n")
    return "\n\n".join(parts)


def cases(skill: Skill) -> list[Cases]:
    """The tests that a skill brings. Raises `UsageError` that names the file that is wrong."""
    found = []
    for path, text in skill.files.items():
        if path.startswith("tests/") and path.endswith(".json"):
            try:
                found.append(_cases(json.loads(text)))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise UsageError(
                    f"`{path}` of `{skill.name}` is no test: {str(error)[:120]}; it must be "
                    '{"function": NAME, "cases": [{"arguments": [...], "expected": ...}]}'
                ) from error
    return found


def _cases(body: dict[str, Json]) -> Cases:
    listed, tolerance = body["cases"], body.get("tolerance", 0.0)
    if not isinstance(listed, list) or not isinstance(tolerance, int | float):
        raise TypeError("`cases` is no list, or `tolerance` no number")
    kept: list[dict[str, Json]] = []
    for one in listed:
        if not isinstance(one, dict) or not isinstance(one.get("arguments"), list):
            raise TypeError("a case has no list of `arguments`")
        if ("expected" in one) == ("raises" in one) or one.keys() - {
            "arguments",
            "expected",
            "raises",
        }:
            raise TypeError("a case has `arguments` and either `expected` or `raises`")
        kept.append(one)
    return Cases(function=str(body["function"]), cases=tuple(kept), tolerance=float(tolerance))


def _scripts(skill: Skill) -> list[tuple[str, Script]]:
    return [
        (path, read(path, text))
        for path, text in sorted(skill.files.items())
        if path.startswith("scripts/") and path.endswith(".py")
    ]


def read(path: str, text: str) -> Script:
    """What a script defines and needs; what is wrong with it is among its `problems`."""
    if len(text) > MAX_SCRIPT:
        return Script(problems=(f"has {len(text)} characters, at most {MAX_SCRIPT} allowed",))
    try:
        tree = ast.parse(text)
        made = [_function(path, node) for node in tree.body if isinstance(node, ast.FunctionDef)]
        defines = frozenset(_defined(tree))
        needs = frozenset(_called(tree)) - defines - frozenset(dir(builtins))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return Script(problems=(f"is not Python: {' '.join(str(error).split())[:120]}",))
    loose = [node.lineno for node in tree.body if not _allowed(node)]
    wrong = (f"line {loose[0]} runs when it is loaded; put it into a function",) if loose else ()
    return Script(
        functions=tuple(one for one in made if not one.name.startswith("_")),
        defines=defines, needs=needs, problems=wrong,
    )  # fmt: skip


def _allowed(node: ast.stmt) -> bool:
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    calls = isinstance(node, ast.Assign | ast.AnnAssign) and any(
        isinstance(part, ast.Call) for part in ast.walk(node)
    )
    return docstring or (isinstance(node, _STATEMENTS) and not calls)


def _function(path: str, node: ast.FunctionDef) -> Function:
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    wrong = []
    if arguments.vararg or arguments.kwarg:
        wrong.append("takes any number of arguments; name each")
    for one in named:
        if one.annotation is None or not _is_json(one.annotation):
            wrong.append(f"has no JSON type for `{one.arg}`")
    if node.returns is None or not _is_json(node.returns):
        wrong.append("has no JSON type for what it returns")
    doc = ast.get_docstring(node) or ""
    if not doc.strip():
        wrong.append("has no docstring that says what it does")
    if node.decorator_list:
        wrong.append("has decorators, which run when it is loaded")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return Function(
        name=node.name, signature=f"{node.name}({ast.unparse(arguments)}){returns}", doc=doc,
        path=path, line=node.lineno, problems=tuple(wrong),
    )  # fmt: skip


def _is_json(node: ast.expr) -> bool:
    """Whether an annotation is made of JSON's types alone."""
    match node:
        case ast.Name(id=name):
            return name in _TYPES
        case ast.Constant(value=None):
            return True
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _is_json(left) and _is_json(right)
        case ast.Subscript(value=ast.Name(id="list"), slice=inner):
            return _is_json(inner)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, value])):
            return isinstance(key, ast.Name) and key.id == "str" and _is_json(value)
    return False


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (
                part.id for one in targets for part in ast.walk(one) if isinstance(part, ast.Name)
            )


def _called(tree: ast.Module) -> Iterator[str]:
    """Names of plain calls; one that a function binds itself is its own affair."""
    bound = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    bound |= {
        node.id for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }  # fmt: skip
    bound |= {
        (one.asname or one.name).partition(".")[0]
        for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)
        for one in node.names
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield from {node.func.id} - bound
