"""The two files of the workflow under test, which its test module names by `FOLDER`."""

from __future__ import annotations

from types import ModuleType

import pytest

from agentloop.refs import load_file


@pytest.fixture(scope="module")
def measures(request: pytest.FixtureRequest) -> ModuleType:
    return load_file(request.module.FOLDER / "measures.py")


@pytest.fixture(scope="module")
def parts(request: pytest.FixtureRequest) -> ModuleType:
    return load_file(request.module.FOLDER / "parts.py")
