"""A kit on a home that outlives it, for tests of the lane that trains."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_workflow

from agentloop.store.archive import Archive
from agentloop.workflows.assemble import Kit, Options, assemble, plan_hash
from agentloop.workflows.load import load
from agentloop.workspace import Workspace

PARTS = tiny_workflow.PARTS.replace("int(a) % 2", "(request.sampling.seed or 0) % 2")
"""Right by the seed of the sample, so that the samples of one task differ."""


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Any]:
    """Opens a kit on a home that outlives it; `lane` is what stands under `lanes: policy:`."""
    (tmp_path / "home").mkdir()

    @asynccontextmanager
    async def kit_of(run: str = "run-1", lane: str | None = None) -> AsyncIterator[Kit]:
        yaml = tiny_workflow.YAML
        if lane is not None:
            start, end = yaml.index("lanes:"), yaml.index("heldout:")
            yaml = f"{yaml[:start]}lanes:\n  policy: {lane}\n{yaml[end:]}"
        folder = tmp_path / "workflows" / "tiny"
        if not folder.exists():
            tiny_workflow.make(tmp_path, yaml=yaml, parts=PARTS)
        space = Workspace((tmp_path, *Workspace.find().roots))
        loaded = load(str(folder), space)
        with Archive(tmp_path / "home") as archive:
            plan = plan_hash(loaded, None, None, 0) if lane else ""
            options = Options(run=run, seed=0, workspace=space, home=tmp_path / "home", plan=plan)
            async with assemble(loaded, archive, options) as kit:
                yield kit

    return kit_of
