"""Floors of versions, a watch on `.pth` files, and calls that shipped code may not make."""

import ast
import importlib.metadata
import site
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = [
    line.split()
    for line in (Path(__file__).parent / "floors.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
# What pip, setuptools and an editable install of this package put there.
KNOWN_PTH = ("distutils-precedence.pth", "_agentloop.pth", "_editable_impl_agentloop.pth")
FORBIDDEN = {
    "pickle.load", "pickle.loads", "yaml.load", "eval", "exec", "os.system", "marshal.loads",
    "torch.load", "dill.load", "shelve.open",
}  # fmt: skip
WORKERS = {"agentloop/sandboxes/child.py": {"exec"}}
"""Runs in a sandbox, and running code is all it is for."""
FORBIDDEN_KEYWORDS = {"shell": True, "trust_remote_code": True}


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:3] if part.isdigit())


@pytest.mark.parametrize(("name", "floor"), FLOORS)
def test_floors(name: str, floor: str) -> None:
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return  # an extra that is not installed cannot hurt
    assert version(installed) >= version(floor)


def test_no_malicious_litellm() -> None:
    try:
        installed = importlib.metadata.version("litellm")
    except importlib.metadata.PackageNotFoundError:
        return
    assert version(installed)[:2] != (1, 107)


def test_no_unknown_pth_file() -> None:
    """A `.pth` file runs at every start of the interpreter: it is how a stealer persists."""
    places = {sysconfig.get_path("purelib"), *site.getsitepackages()}
    found = {path.name for place in places for path in Path(place).glob("*.pth")}
    assert found <= set(KNOWN_PTH)


def calls(path: Path) -> list[str]:
    bad = []
    may = WORKERS.get(path.relative_to(ROOT).as_posix() if ROOT in path.parents else "", set())
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in FORBIDDEN - may:
                bad.append(f"{path.name}:{node.lineno} {name}")
            bad += [
                f"{path.name}:{node.lineno} {key.arg}={value}"
                for key in node.keywords
                for word, value in FORBIDDEN_KEYWORDS.items()
                if key.arg == word and ast.unparse(key.value) == str(value)
            ]
    return bad


def test_forbidden_calls() -> None:
    folders = ("agentloop", "graphs", "workflows", "benchmarks")
    shipped = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert [bad for path in shipped for bad in calls(path)] == []


def test_the_gate_has_teeth(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text("import pickle\npickle.loads(b'')\nrun('x', shell=True)\n")
    assert len(calls(planted)) == 2


def test_constraints_pin_what_is_declared() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    assert pins["litellm"].startswith("1.106.") and pins["torch"] == "2.13.0"
