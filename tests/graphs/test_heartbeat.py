"""A blocked event loop is noticed, and the line that blocks it is named."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from agentloop.graphs import heartbeat
from agentloop.graphs.heartbeat import Heartbeat


def blocks() -> None:
    time.sleep(0.5)


def test_a_blocked_loop_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.02)
    # Another test's logging configuration may have switched it off.
    monkeypatch.setattr(logging.getLogger("agentloop"), "disabled", False)

    async def main() -> str:
        began = time.monotonic()
        with Heartbeat(asyncio.get_running_loop(), 0.1).watching() as beats:
            await asyncio.sleep(0.1)
            assert beats.last == "" and beats.since(began) == ""
            blocks()
            await asyncio.sleep(0.1)
            assert beats.since(began) == beats.last and beats.since(time.monotonic()) == ""
            return beats.last

    with caplog.at_level(logging.WARNING, logger="agentloop"):
        said = asyncio.run(main())
    assert "test_heartbeat.py" in said and "(blocks)" in said and said.endswith("s")
    assert len(caplog.records) == 1 and "(blocks)" in caplog.records[0].getMessage()


def test_a_loop_that_is_closed_ends_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.02)

    async def main() -> Heartbeat:
        beats = Heartbeat(asyncio.get_running_loop(), 0.1)
        beats.watching().__enter__()
        return beats

    beats = asyncio.run(main())
    time.sleep(0.1)
    assert beats.last == ""
