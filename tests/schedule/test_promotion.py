"""What a scheduler's cycle may promote: nothing once its lease is lost, and nothing twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_workflow

from agentloop.cli.session import Session
from agentloop.cycle import step
from agentloop.lanes.bench import Bench
from agentloop.lanes.collect import Explore
from agentloop.records import Json
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
        assert not archive.log.keys("step") and not archive.verdicts("cycle-a")
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


def test_a_holder_that_loses_its_lease_on_the_way_notes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of a stage, past its lease: what it made meanwhile is not noted, so
    that both go on from what the other one noted."""
    session, real = open_session(tmp_path), Explore.collect
    with session.archive as archive:
        fence = ("schedule/tiny", archive.log.lease("schedule/tiny", "one", 120.0))

        async def collect(self: Explore, bench: Bench) -> Json:
            made = await real(self, bench)
            archive.log.renew(*fence, 0.0)
            archive.log.lease("schedule/tiny", "two", 120.0)
            return made

        monkeypatch.setattr(Explore, "collect", collect)
        with pytest.raises(LeaseLost):
            asyncio.run(session.cycle_of("cycle-a", fence))
        noted = [key.split("/")[1] for key in archive.log.keys("step")]
        assert noted == ["champion"] and not archive.verdicts("cycle-a")


def test_a_stage_gives_what_the_log_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process noted it first, or a secret was taken out of it."""
    monkeypatch.setenv("SERVICE_API_KEY", "wombat-7781-secret")
    with Archive(tmp_path) as archive:
        bench = SimpleNamespace(archive=archive)
        kit: Any = SimpleNamespace(bench=bench, cycle_id="cycle-a", plan="p")

        async def beaten() -> Json:
            archive.add_step("cycle-a", "collect/p", {"by": "the other"})
            return {"by": "this one"}

        async def secret() -> Json:
            return {"reason": "refused: wombat-7781-secret"}

        for _ in range(2):
            assert asyncio.run(step(kit, "collect", beaten)) == {"by": "the other"}
            told = asyncio.run(step(kit, "propose", secret))
            assert told == archive.step("cycle-a", "propose/p")
            assert "wombat" not in str(told)
