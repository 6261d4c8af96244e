"""Functions in code: which ones it defines, which ones it needs, and what comes of their values.

Goes in: Python source, which is parsed and never run here. Comes out: top-level functions with the
imports they need, source that reports when one of them ends well, and the names of those whose
returned value reaches a call. The decision worth knowing: all of it is read off the syntax tree, so
a name in a comment or a string is not a call.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from agentloop.records import record


@record
class Function:
    """A top-level function: its source, and the import lines of the code it stood in."""

    name: str
    code: str
    imports: tuple[str, ...] = ()

    @property
    def signature(self) -> str:
        """`name(a, b)`."""
        [made] = ast.parse(self.code).body
        assert isinstance(made, ast.FunctionDef)
        return f"{self.name}({ast.unparse(made.args)})"


def parsed(code: str) -> ast.Module | None:
    """The tree of code a model wrote; `None` when it is not Python (or too deep to read)."""
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def functions(code: str) -> list[Function]:
    """Top-level functions of `code`, each name once (the last one counts); none of code that is not
    Python. Decorated ones are left out: what they do is not in their source."""
    return list(_functions(code))


@lru_cache(maxsize=4096)  # credit and libraries look at the same programs again and again
def _functions(code: str) -> tuple[Function, ...]:
    tree = parsed(code)
    if tree is None:
        return ()
    imports = tuple(
        ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
    )
    found = {
        node.name: Function(name=node.name, code=ast.unparse(node), imports=imports)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.decorator_list
    }
    return tuple(found.values())


def source(of: Iterable[Function]) -> str:
    """Code that defines them, imports first."""
    chosen = list(of)
    lines = dict.fromkeys(line for one in chosen for line in one.imports)
    return "\n\n".join(filter(None, ["\n".join(lines), *(one.code for one in chosen)]))


def reporting(of: Sequence[Function], mark: str) -> str:
    """`source`, but each of them calls `{mark}_begin(name)` before and `{mark}_end(name)` after it,
    the latter only when it returned. `mark` is to be a name that the code cannot know."""
    wrapped = (
        f"{mark}_{one.name} = {one.name}\n"
        f"def {one.name}(*given, **named):\n"
        f"    {mark}_begin({one.name!r})\n"
        f"    value = {mark}_{one.name}(*given, **named)\n"
        f"    {mark}_end({one.name!r})\n"
        "    return value"
        for one in of
    )
    return "\n".join([source(of), *wrapped, ""])


def called(code: str) -> list[str]:
    """Names that are called, each once, in the order of the text."""
    tree = parsed(code)
    if tree is None:
        return []
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    calls.sort(key=lambda node: (node.lineno, node.col_offset))
    return list(dict.fromkeys(node.func.id for node in calls if isinstance(node.func, ast.Name)))


def reaching(code: str, names: Collection[str], calls: Collection[str]) -> set[str]:
    """Those of `names` whose returned value is an argument of one of `calls`, at once or through
    variables. A value that only decides whether something is called does not reach it. Variables
    are told apart by name alone, whatever the order and the scope."""
    tree = parsed(code)
    if tree is None:
        return set()
    held: dict[str, set[str]] = {}
    before = -1
    while before != sum(map(len, held.values())):  # until nothing new flows anywhere
        before = sum(map(len, held.values()))
        for node in ast.walk(tree):
            for target, value in _bindings(node):
                flows = _values(value, names, held)
                for name in (one.id for one in ast.walk(target) if isinstance(one, ast.Name)):
                    held.setdefault(name, set()).update(flows)
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in calls:
            for given in (*node.args, *(keyword.value for keyword in node.keywords)):
                found |= _values(given, names, held)
    return found


def _bindings(node: ast.AST) -> Iterable[tuple[ast.AST, ast.AST]]:
    """(what is bound, to what) by one node."""
    match node:
        case ast.Assign():
            yield from ((target, node.value) for target in node.targets)
        case ast.AugAssign() | ast.NamedExpr():
            yield node.target, node.value
        case ast.AnnAssign() if node.value is not None:
            yield node.target, node.value
        case ast.For() | ast.comprehension():
            yield node.target, node.iter
        case ast.Call(func=ast.Attribute(value=ast.Name() as owner)):  # such as lines.append(x)
            yield from ((owner, given) for given in node.args)


def _values(node: ast.AST, names: Collection[str], held: dict[str, set[str]]) -> set[str]:
    """Whose returned values are in an expression."""
    found: set[str] = set()
    for one in ast.walk(node):
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id in names:
            found.add(one.func.id)
        elif isinstance(one, ast.Name):
            found |= held.get(one.id, set())
    return found
