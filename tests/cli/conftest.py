"""For the tests of the commands: a tiny workspace, one home in which a cycle was run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_workflow

from agentloop.cli import run

Cli = Callable[..., object]


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """The folder of a fresh tiny workflow."""
    return str(tiny_workflow.make(tmp_path))


@pytest.fixture(scope="session")
def cycled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(workflow, home) after one cycle; for tests that only read."""
    root = tmp_path_factory.mktemp("cycled")
    workflow = str(tiny_workflow.make(root))
    assert run(["cycle", workflow, "--home", str(root / "home"), "--json"]) == 0
    return workflow, str(root / "home")


@pytest.fixture
def data(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command with --json; its one JSON document, after a look at both streams."""

    def call(*arguments: str, code: int = 0) -> object:
        capsys.readouterr()
        assert run([*arguments, "--json"]) == code
        out, err = capsys.readouterr()
        assert out.endswith("\n") and out.count("\n") == 1
        assert "{" not in err and "Traceback" not in err
        return json.loads(out)

    return call


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command that must fail; its one sentence on stderr."""

    def call(*arguments: str, code: int = 2) -> str:
        capsys.readouterr()
        assert run(list(arguments)) == code
        out, err = capsys.readouterr()
        assert out == "" and "Traceback" not in err
        sentences = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(sentences) == 1 and err.rstrip().endswith(sentences[0])
        return sentences[0]

    return call
