"""Two homes: ours, with rollouts of two workflows, and theirs, with none."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from exchange_fixtures import fill

from agentloop.store.archive import Archive


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Archive]:
    """Runs `run-a` of `w` and `run-b` of `other`."""
    (tmp_path / "ours").mkdir()
    with Archive(tmp_path / "ours") as archive:
        fill(archive, "run-a")
        fill(archive, "run-b", "other")
        yield archive


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Archive]:
    """An empty one."""
    (tmp_path / "theirs").mkdir()
    with Archive(tmp_path / "theirs") as archive:
        yield archive
