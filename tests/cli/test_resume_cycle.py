"""A cycle that stopped half-way, in one process: what is continued, repeated, refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_cycle
from fake_endpoint import FakeEndpoint

import agentloop.cycle
from agentloop.cli import run
from agentloop.store.archive import Archive
from agentloop.store.query import Query


class Stopped(Exception):
    """The machine went away."""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEndpoint]:
    small_cycle.write(tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    with FakeEndpoint(small_cycle.world()) as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
        yield fake


def stop_after_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(*_: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(agentloop.cycle, "propose", gone)
        with pytest.raises(Stopped):
            run(["cycle", "small"])


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def keys(kind: str) -> list[str]:
    archive = Archive(Path(".agentloop"))
    found = archive.log.keys(kind)
    archive.close()
    return found


def test_a_stopped_cycle_goes_on_where_it_was(
    fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after_collecting(monkeypatch)
    collected, calls = keys("episode"), fake.calls
    assert calls == 2 * len(collected) == len(keys("call")) > 0

    assert run(["cycle", "small"]) == 2  # not without being asked to
    assert "--resume" in capsys.readouterr().err
    assert fake.calls == calls

    report = as_json(capsys, "cycle", "small", "--resume")
    assert report["state"] == "promoted"
    assert len(keys("call")) == fake.calls  # each paid once: collecting was not repeated
    assert set(collected) < set(keys("episode"))
    assert len(keys("cycle")) == 1

    calls = fake.calls
    for options in (["--resume"], []):  # a finished one is reported again
        assert as_json(capsys, "cycle", "small", *options) == report
    assert fake.calls == calls

    another = as_json(capsys, "cycle", "small", "--again")
    assert another["cycle"] != report["cycle"] and len(keys("cycle")) == 2
    assert fake.calls > calls
    assert as_json(capsys, "cycle", "small") == another


def test_a_changed_workflow_is_not_continued(
    fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after_collecting(monkeypatch)
    calls = fake.calls
    assert run(["cycle", "small", "--resume", "--set", "heldout.n=8"]) == 2
    assert "--again" in capsys.readouterr().err
    grader = Path("small/grader.py")
    grader.write_text(grader.read_text() + "\n")
    assert run(["cycle", "small", "--resume"]) == 2
    assert "--again" in capsys.readouterr().err
    assert run(["cycle", "small", "--resume", "--again"]) == 2
    assert fake.calls == calls
    assert len(keys("cycle")) == 1


def test_an_episode_logged_without_its_score_is_scored_on_resuming(
    fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The moment between two appends is a moment to be killed in, too."""

    async def gone(*_: object, **__: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Archive, "add_scores", gone)
        with pytest.raises(Stopped):
            run(["cycle", "small"])
    assert keys("episode") and not keys("score")
    calls = fake.calls
    as_json(capsys, "cycle", "small", "--resume")
    archive = Archive(Path(".agentloop"))
    episodes = archive.episodes(Query(purpose="collect"))
    archive.close()
    assert all(episode.score is not None for episode in episodes)
    assert len(keys("call")) == fake.calls > calls
