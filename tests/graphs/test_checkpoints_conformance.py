"""LangGraph's public suite for checkpointers, all of its required capabilities, on ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentloop.graphs.checkpoints import DeltaSaver
from agentloop.trajectories.redact import Redactor

conformance = pytest.importorskip("langgraph.checkpoint.conformance")


@pytest.mark.parametrize("redact", [None, Redactor({"KEY": "not in there"})])
def test_the_public_suite_passes(tmp_path: Path, redact: Redactor | None) -> None:
    folders = iter(tmp_path / str(number) for number in range(100))

    @conformance.checkpointer_test(name="DeltaSaver")  # type: ignore[untyped-decorator]
    async def saver() -> AsyncIterator[DeltaSaver]:
        yield DeltaSaver(next(folders), redact=redact)

    report = asyncio.run(conformance.validate(saver))
    failures = [failure for one in report.results.values() for failure in one.failures]
    assert not failures and report.passed_all_base()
    assert sum(one.tests_passed for one in report.results.values()) >= 50
