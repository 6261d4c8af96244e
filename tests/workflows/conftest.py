"""The workflow under test, which its test module names by `FOLDER`: its two files, and a cycle."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agentloop.cli import run
from agentloop.refs import load_file


@pytest.fixture(scope="module")
def measures(request: pytest.FixtureRequest) -> ModuleType:
    return load_file(request.module.FOLDER / "measures.py")


@pytest.fixture(scope="module")
def parts(request: pytest.FixtureRequest) -> ModuleType:
    return load_file(request.module.FOLDER / "parts.py")


@pytest.fixture
def report(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Any:
    """What a cycle with the scripted model says, whose home is `tmp_path` and which promoted."""
    folder = str(request.module.FOLDER)
    assert run(["cycle", folder, "--model", "scripted", "--home", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["state"] == "promoted", said
    return said
