"""The wheel: holds the content and nothing else, and runs from an unrelated folder."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the tree as it is, with the hatchling that is installed."""
    out = tmp_path_factory.mktemp("dist")
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [made] = out.glob("*.whl")
    return made


def test_what_is_inside(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {"agentloop/py.typed", "agentloop/cli/app.py", "agentloop/_workspace/langgraph.json"}
    for folder in ("graphs", "skills", "sandboxes", "workflows"):
        expected |= {
            f"agentloop/_workspace/{path.relative_to(ROOT)}"
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and not hidden(path.relative_to(ROOT)) and path.suffix != ".pyc"
        }
    expected |= {
        str(path.relative_to(ROOT)) for path in (ROOT / "agentloop").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }  # fmt: skip
    assert not expected - names
    unwanted = [
        name for name in names
        if hidden(Path(name)) or name.endswith((".pyc", ".db"))
        or not name.startswith(("agentloop/", "agentloop-")) or "/tests/" in name
    ]  # fmt: skip
    assert not unwanted
    assert wheel.stat().st_size < 3e6


def hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def test_it_runs_in_a_clean_environment_from_an_unrelated_folder(
    wheel: Path, tmp_path: Path
) -> None:
    """Only the base dependencies, from the package index, in an environment of its own."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [str(python), *arguments], cwd=elsewhere, env=environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    pins = ("-c", str(ROOT / "constraints.txt"))
    run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins, str(wheel))
    where = run("-c", "import agentloop; print(agentloop.__file__)").strip()
    assert Path(where).is_relative_to(tmp_path / "venv")
    home = ("--home", str(tmp_path / "home"))
    command = ("-m", "agentloop", "run", "quickstart", "--model", "scripted", "--n", "2", "--json")
    told = json.loads(run(*command, *home))
    assert told["n"] == 2 == told["succeeded"] + told["failed"]
    run("-m", "agentloop", "init", "mine")
    assert (elsewhere / "mine" / "workflow.yaml").is_file()
    run("-m", "agentloop", "cycle", "mine", "--dry-run", "--model", "http://127.0.0.1:9/v1")
    assert sorted(path.name for path in elsewhere.iterdir()) == ["mine"]
