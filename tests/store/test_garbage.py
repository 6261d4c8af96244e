"""What may go: a function of facts; and what stays is what a rollback, or a kept cycle, needs."""

import os
import shutil
import time
from pathlib import Path

import pytest

from agentloop.records import Bundle, Dataset, Instruction, Policy
from agentloop.store.archive import Archive
from agentloop.store.garbage import Facts, Thing, gather, removals, remove

DAY = 86400.0


def gone(facts: Facts) -> set[str]:
    return {f"{one.thing.folder}/{one.thing.name}" for one in removals(facts)}


def test_what_decides() -> None:
    things = (
        Thing("policies", "served", DAY), Thing("policies", "lost", DAY),
        Thing("policies", "recent", DAY), Thing("policies", "just-written", 9.99 * DAY),
        Thing("datasets", "of-served", DAY), Thing("datasets", "lost", DAY),
        Thing("datasets", ".draft.x", DAY), Thing("policies", ".draft.y", 10 * DAY),
        Thing("training", "old", DAY), Thing("training", "new", 11 * DAY),
        Thing("logs", "old.log", DAY), Thing("logs", "new.log", 11 * DAY),
        Thing("checkpoints", "ended", 11 * DAY), Thing("checkpoints", "under-way", DAY),
    )  # fmt: skip
    facts = Facts(
        things=things, needed=frozenset({"served", "of-served"}),
        made={"served": 1, "lost": 2, "recent": 50, "of-served": 1}, since=(40, 10 * DAY),
        done=frozenset({"ended"}),
    )  # fmt: skip
    assert gone(facts) == {
        "policies/lost", "datasets/lost", "datasets/.draft.x", "training/old", "logs/old.log",
        "checkpoints/ended",
    }  # fmt: skip
    assert gone(Facts(things=things)) == set(), "without facts nothing goes"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)


def version(archive: Archive, home: Path, number: int) -> str:
    dataset = archive.put(Dataset(rows=1, tokens=1, sha256=f"d{number}", episodes=()))
    policy = archive.put(Policy(base="b", sha256=f"p{number}", dataset=dataset))
    for folder, name in (("datasets", dataset), ("policies", policy), ("training", f"job{number}")):
        (home / folder / name).mkdir(parents=True)
        (home / folder / name / "file").write_bytes(b"x" * 100)
        _age(home / folder / name, 5 * DAY)
    bundle = Bundle(instruction=archive.put(Instruction(text="i")), policies={"agent": policy})
    return archive.put(bundle)


def _age(path: Path, seconds: float) -> None:
    at = time.time() - seconds
    for one in (*path.rglob("*"), path):
        os.utime(one, (at, at))


def cycle(archive: Archive, number: int, *, finished: bool) -> None:
    archive.add_event("cycle", f"cycle-{number}", "w", {})
    if finished:
        archive.add_step(f"cycle-{number}", "report", True)


def left(home: Path, folder: str) -> int:
    return sum(1 for _ in (home / folder).iterdir())


def test_a_home_keeps_what_served_and_what_kept_cycles_made(
    archive: Archive, tmp_path: Path
) -> None:
    bundles = []
    for number in range(4):
        cycle(archive, number, finished=True)
        bundles.append(version(archive, tmp_path, number))
    for bundle in (bundles[0], bundles[2]):
        archive.point("w/champion", bundle, reason="r", scope="w")
    before = list(archive.read())
    found = removals(gather(archive, tmp_path, keep=1))
    assert remove(tmp_path, found) > 0
    # 0 and 2 served, 3 was made by the cycle that is kept
    assert left(tmp_path, "policies") == left(tmp_path, "datasets") == 3
    assert left(tmp_path, "training") == 0
    assert list(archive.read()) == before and archive.verify()["ok"]
    assert removals(gather(archive, tmp_path, keep=1)) == []
    assert archive.rollback("w/champion") == bundles[0]
    policy = archive.get(bundles[0], Bundle).policies["agent"]
    assert (tmp_path / "policies" / policy / "file").is_file()
    remove(tmp_path, removals(gather(archive, tmp_path, keep=0)))
    assert left(tmp_path, "policies") == 2
    archive.close()


def test_an_unfinished_cycle_keeps_all_since_it_began(archive: Archive, tmp_path: Path) -> None:
    cycle(archive, 0, finished=False)
    version(archive, tmp_path, 0)
    assert removals(gather(archive, tmp_path, keep=0)) != [], "files older than the cycle"
    for path in (tmp_path / "policies", tmp_path / "datasets", tmp_path / "training"):
        _age(path, 0)
    assert removals(gather(archive, tmp_path, keep=0)) == []
    archive.close()


def test_what_a_retired_alias_pointed_at_stays(archive: Archive, tmp_path: Path) -> None:
    bundle = version(archive, tmp_path, 0)
    archive.point("w/canary", bundle, reason="r", scope="w")
    archive.retire("w/canary", reason="harm")
    cycle(archive, 0, finished=True)
    remove(tmp_path, removals(gather(archive, tmp_path, keep=0)))
    assert left(tmp_path, "policies") == left(tmp_path, "datasets") == 1
    archive.close()


def test_a_cycle_that_failed_is_kept_until_a_later_one_has_finished(
    archive: Archive, tmp_path: Path
) -> None:
    cycle(archive, 0, finished=False)
    version(archive, tmp_path, 0)
    archive.add_event("cycle", "cycle-other", "another", {})
    archive.add_step("cycle-other", "report", True)
    assert left(tmp_path, "policies") == 1 and "policies" not in kinds(archive, tmp_path)
    cycle(archive, 1, finished=True)
    assert "policies" in kinds(archive, tmp_path)
    archive.close()


def kinds(archive: Archive, home: Path) -> set[str]:
    return {one.thing.folder for one in removals(gather(archive, home, keep=1))}


def test_a_run_that_may_go_on_keeps_its_bundle_and_no_more(
    archive: Archive, tmp_path: Path
) -> None:
    bundles = [version(archive, tmp_path, number) for number in range(2)]
    archive.add_event("run", "run-1", "w", {"bundle": bundles[0][:12]})  # as it was given
    version(archive, tmp_path, 2)
    cycle(archive, 0, finished=True)
    remove(tmp_path, removals(gather(archive, tmp_path, keep=1)))
    policy = archive.get(bundles[0], Bundle).policies["agent"]
    assert [path.name for path in (tmp_path / "policies").iterdir()] == [policy]
    archive.add_step("run-1", "done", True)
    remove(tmp_path, removals(gather(archive, tmp_path, keep=1)))
    assert left(tmp_path, "policies") == 0
    archive.close()


def test_what_goes_meanwhile_is_passed_over(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version(archive, tmp_path, 0)
    cycle(archive, 0, finished=True)
    found = removals(gather(archive, tmp_path, keep=1))
    rglob = Path.rglob

    def taken(path: Path, pattern: str) -> list[Path]:
        files = list(rglob(path, pattern))
        for one in files:
            one.unlink()
        return files

    monkeypatch.setattr(Path, "rglob", taken)
    assert gather(archive, tmp_path, keep=1).things == ()
    shutil.rmtree(tmp_path / "training")
    assert remove(tmp_path, found) > 0
    archive.close()


def test_an_empty_home_has_nothing_to_remove(archive: Archive, tmp_path: Path) -> None:
    assert removals(gather(archive, tmp_path, keep=0)) == []
    archive.close()
