"""What a scheduler's cycle may promote: nothing once its lease is lost, and nothing twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import tiny_workflow

from agentloop.cli.session import Session
from agentloop.store.archive import Archive
from agentloop.store.leases import LeaseLost


def open_session(root: Path) -> Session:
    folder = root / "workflows" / "tiny"
    if not folder.exists():
        tiny_workflow.make(root)
    return Session.open(str(folder), root / "home", root, None, None, 0, None, as_json=True)


def champions(root: Path) -> list[str]:
    with Archive(root / "home") as archive:
        return [one.bundle for one in archive.alias_history("tiny/champion")]


def test_under_a_lost_lease_nothing_is_promoted_and_nothing_reported(tmp_path: Path) -> None:
    session = open_session(tmp_path)
    with session.archive as archive:
        stale = ("schedule/tiny", archive.log.lease("schedule/tiny", "one", 120.0))
        archive.log.renew(*stale, 0.0)
        archive.log.lease("schedule/tiny", "two", 120.0)
        with pytest.raises(LeaseLost):
            asyncio.run(session.cycle_of("cycle-a", stale))
        assert archive.step("cycle-a", "report") is None
    assert len(champions(tmp_path)) == 1

    session = open_session(tmp_path)  # the one who holds it now goes on
    with session.archive as archive:
        token = archive.log.lease("schedule/tiny", "three", 0.0)
        report = asyncio.run(session.cycle_of("cycle-a", ("schedule/tiny", token)))
    assert report.state == "promoted" and champions(tmp_path)[-1] == report.bundle


def test_a_rollback_between_promotion_and_report_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed just after it promoted; a person went back; the cycle, gone on with, does not
    promote a second time."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    session = open_session(tmp_path)
    with monkeypatch.context() as patch, session.archive:
        patch.setattr("agentloop.cycle.make_report", killed)
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(session.cycle_of("cycle-a"))
    first, promoted = champions(tmp_path)
    session = open_session(tmp_path)
    with session.archive as archive:
        assert archive.rollback("tiny/champion") == first
        asyncio.run(session.cycle_of("cycle-a"))
    assert champions(tmp_path) == [first, promoted, first]
