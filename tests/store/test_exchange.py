"""Export and import: the same rollouts in another home, which stays its own."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exchange_fixtures import SCORE, fill, lines, reply, signed

from agentloop.cycle import open_cycle
from agentloop.errors import UsageError
from agentloop.records import Bundle, Instruction, Skill, Usage
from agentloop.store.archive import Archive
from agentloop.store.exchange import FORK, export, load
from agentloop.store.portable import entries
from agentloop.store.query import Query
from agentloop.workflows import forks
from agentloop.workflows.seconds import seconds_of


def content(archive: Archive) -> list[Any]:
    kinds = ("episode", "score", "call", "instruction", "skill", "bundle")
    return [(e.kind, e.key, e.scope, e.at, e.body) for e in archive.read(Query(kinds=kinds))]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_another_home_has_the_same_rollouts(
    ours: Archive, theirs: Archive, tmp_path: Path, ending: str
) -> None:
    file = tmp_path / f"all{ending}"
    count = export(ours.log, file).rows
    assert file.stat().st_mode & 0o777 == 0o600
    done = load(theirs.log, file)
    assert (done.new, done.known, done.left) == (count, 0, 0)
    assert content(theirs) == content(ours)
    assert theirs.episodes() == ours.episodes()
    assert theirs.aliases() == {}, "what is served is nobody else's to say"
    again = load(theirs.log, file)
    assert (again.new, again.known, again.left) == (0, count, 0)
    assert theirs.verify()["ok"]


def test_a_part_is_whole_in_itself(ours: Archive, theirs: Archive, tmp_path: Path) -> None:
    export(ours.log, tmp_path / "w.jsonl", workflow="w")
    load(theirs.log, tmp_path / "w.jsonl")
    assert {one.run for one in theirs.episodes()} == {"run-a"}
    bundle = theirs.get(theirs.episodes()[0].bundle, Bundle)
    assert theirs.get(bundle.instruction, Instruction).text == "be good"
    assert theirs.get(bundle.skills[0], Skill).document == "of w"
    assert len(theirs.log.keys("skill")) == 1
    assert theirs.call(f"{theirs.episodes()[0].id}/0-abc") == reply("0")
    export(ours.log, tmp_path / "b.jsonl", run="run-b")
    assert {one.kind for one in _drafts(tmp_path / "b.jsonl")} == {
        "episode", "score", "call", "run", "instruction", "skill", "bundle"
    }  # fmt: skip
    with pytest.raises(UsageError, match="no rollouts of `nothing`"):
        export(ours.log, tmp_path / "n.jsonl", workflow="nothing")
    assert not (tmp_path / "n.jsonl").exists()


def _drafts(path: Path) -> list[Any]:
    return list(entries(path))


def test_a_rollout_whose_name_says_nothing_is_left_out_and_counted(
    ours: Archive, theirs: Archive, tmp_path: Path
) -> None:
    [one] = fill(ours, "run-c", n=1)
    old = replace(one, id="ep-00000000000000aa", setup=None)
    asyncio.run(ours.add_episodes([old], scope="w"))
    asyncio.run(ours.add_scores([(old.id, SCORE)], "reward", scope="w"))
    done = export(ours.log, tmp_path / "all.jsonl")
    assert done.left == 1
    assert load(theirs.log, tmp_path / "all.jsonl").new == done.rows
    assert len(theirs.episodes()) == 7


def test_no_file_spends_what_a_cycle_of_this_home_may(
    ours: Archive, theirs: Archive, tmp_path: Path
) -> None:
    cycle = open_cycle(theirs, "w", 0, plan="p", resume=False, again=False)[0]
    theirs.add_event("cycle", cycle, "w", {"plan": "p"})
    taken = f"{ours.episodes()[0].id}/1-abc"
    asyncio.run(ours.add_call(taken, reply("told"), scope=FORK))
    found = lines(ours, tmp_path)
    for one in found:
        if one.get("kind") == "call" and one["scope"] != FORK:
            one.update(scope=cycle, at=1e10)
    (tmp_path / "bad.jsonl").write_text(signed(found))
    load(theirs.log, tmp_path / "bad.jsonl")
    assert theirs.spent(cycle) == Usage() and seconds_of(theirs, cycle) == 0.0
    assert theirs.spent("run-a").calls == 3, "what a fork took over was paid for once"


def test_forks_to_come_take_another_name_than_imported_ones(
    ours: Archive, theirs: Archive, tmp_path: Path
) -> None:
    name = forks.run_id(theirs, "ep-1", 2, "bundle-1")
    fill(ours, name)
    export(ours.log, tmp_path / "all.jsonl")
    load(theirs.log, tmp_path / "all.jsonl")
    assert forks.run_id(theirs, "ep-1", 2, "bundle-1") != name
    assert forks.run_id(ours, "ep-1", 2, "bundle-1") == name, "and find their own again"


def test_an_imported_run_is_not_gone_on_with(
    ours: Archive, theirs: Archive, tmp_path: Path
) -> None:
    fill(ours, open_cycle(ours, "w", 0, plan="p", resume=False, again=False)[0])
    export(ours.log, tmp_path / "all.jsonl")
    first = open_cycle(theirs, "w", 0, plan="p", resume=False, again=False)[0]
    load(theirs.log, tmp_path / "all.jsonl")
    taken = {one.run for one in theirs.episodes()}
    following, report = open_cycle(theirs, "w", 0, plan="p", resume=False, again=False)
    assert first in taken and following not in taken and report is None
    assert theirs.step("run-a", "done") is True


def test_a_file_adds_nothing_to_a_run_of_this_home(ours: Archive, tmp_path: Path) -> None:
    with Archive(_made(tmp_path / "third")) as third:
        fill(third, "run-a", n=4)
        asyncio.run(third.add_scores([(third.episodes()[2].id, SCORE)], "theirs", scope="w"))
        export(third.log, tmp_path / "all.jsonl")
    before = ours.episodes()
    done = load(ours.log, tmp_path / "all.jsonl")
    assert done.left == 3, "a rollout, its reply, a score"
    assert ours.episodes() == before
    again = load(ours.log, tmp_path / "all.jsonl")
    assert again.new == 0


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def test_an_export_never_replaces_a_file(ours: Archive, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("dear diary")
    with pytest.raises(UsageError, match="exists; give another name"):
        export(ours.log, tmp_path / "mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_text() == "dear diary"
    assert [path.name for path in tmp_path.glob(".*")] == []
