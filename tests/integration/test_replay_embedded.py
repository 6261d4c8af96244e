"""A run of the real local model, replayed and forked: token by token the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from agentloop.cli import run
from agentloop.store.archive import Archive
from agentloop.store.query import Query

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    code = run([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, (out, err)
    return json.loads(out)


def test_a_real_run_is_its_record(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = called(capsys, "run", "quickstart", "--model", "embedded", "-n", "8")
    done = called(capsys, "runs", "replay", made["run"])
    assert (done["identical"], done["different"], done["impossible"]) == (8, 0, 0)
    with Archive(home) as archive:
        episodes = archive.episodes(Query(run=made["run"]))
    assert all(node.token_ids for one in episodes for node in one.trajectories[0].nodes[-1:])
    parent = max(episodes, key=lambda one: one.usage.calls)
    assert parent.usage.calls >= 2, "no rollout used its tool"
    assert parent.trajectories[0].nodes[-1].sampling.temperature == 0
    last = str(parent.usage.calls - 1)
    forked = called(capsys, "runs", "fork", parent.id, "--at", last, "--model", "embedded")
    with Archive(home) as archive:
        [made] = archive.episodes(Query(run=forked["run"]))
    pairs = zip(made.trajectories[0].nodes, parent.trajectories[0].nodes, strict=True)
    apart = [
        abs(one - two)
        for new, old in pairs
        for one, two in zip(new.logprobs or (), old.logprobs or (), strict=True)
    ]
    print(f"log-probs of the fork are {max(apart):.1e} apart at most")
    assert [one["difference"] for one in forked["episodes"]] == [""]
    again = called(capsys, "runs", "replay", forked["episodes"][0]["id"])
    assert again["identical"] == 1
