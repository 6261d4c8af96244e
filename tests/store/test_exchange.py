"""Export and import: the same rollouts in another home; nothing from a tampered file."""

import asyncio
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from agentloop.cycle import open_cycle
from agentloop.errors import UsageError
from agentloop.records import (
    Bundle,
    Completion,
    Episode,
    Instruction,
    Limits,
    Message,
    Sampling,
    Score,
    Setup,
    Skill,
    Task,
    Usage,
    attempt_of,
)
from agentloop.store.archive import Archive
from agentloop.store.exchange import _digest, check, export, load
from agentloop.store.query import Query

SCORE = Score(value=1.0, success=True, source="x:y")


def rollout(number: int, run: str, bundle: str) -> Episode:
    setup = Setup(
        graph="react", shape="s", tools={}, system="be good", sampling=Sampling(seed=number),
        limits=Limits(),
    )  # fmt: skip
    made = Episode(
        id="", task=Task(id=f"t{number}", prompt=f"What is {number}?"), bundle=bundle,
        purpose="serve", run=run, seed=number, answer=str(number), setup=setup, started=5.0,
    )  # fmt: skip
    return replace(made, id=attempt_of(made).id)


def reply(text: str) -> Completion:
    return Completion(
        message=Message(role="assistant", content=text), finish_reason="stop",
        usage=Usage(completion_tokens=1, calls=1), model="m",
    )  # fmt: skip


def fill(archive: Archive, run: str, workflow: str = "w", n: int = 3) -> list[Episode]:
    instruction = archive.put(Instruction(text="be good"))
    skill = archive.put(Skill(name="s", description="d", document=f"of {workflow}"))
    bundle = archive.put(Bundle(instruction=instruction, skills=(skill,)))
    if archive.alias(f"{workflow}/champion") is None:
        archive.point(f"{workflow}/champion", bundle, reason="first", scope=workflow)
    made = [rollout(number, run, bundle) for number in range(n)]
    body = {"purpose": "serve", "seed": 0, "plan": "p", "bundle": bundle}
    archive.add_event("run", run, workflow, body)  # type: ignore[arg-type]

    async def write() -> None:
        for one in made:
            await archive.add_call(f"{one.id}/0-abc", reply(one.answer or ""), scope=run)
        await archive.add_episodes(made, scope=workflow)
        await archive.add_scores([(one.id, SCORE) for one in made[:2]], "reward", scope=workflow)

    asyncio.run(write())
    return made


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Archive]:
    with Archive(tmp_path / "ours") as archive:
        fill(archive, "run-a")
        fill(archive, "run-b", "other")
        yield archive


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Archive]:
    (tmp_path / "theirs").mkdir()
    with Archive(tmp_path / "theirs") as archive:
        yield archive


@pytest.fixture(autouse=True)
def _home(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir(exist_ok=True)


def content(archive: Archive) -> list[Any]:
    kinds = ("episode", "score", "call", "instruction", "skill", "bundle")
    return [(e.kind, e.key, e.scope, e.at, e.body) for e in archive.read(Query(kinds=kinds))]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_another_home_has_the_same_rollouts(
    ours: Archive, theirs: Archive, tmp_path: Path, ending: str
) -> None:
    file = tmp_path / f"all{ending}"
    count = export(ours.log, file)
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
    from agentloop.store.exchange import entries

    return list(entries(path))


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


def lines(ours: Archive, tmp_path: Path) -> list[dict[str, Any]]:
    export(ours.log, tmp_path / "whole.jsonl")
    return [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]


def signed(values: list[dict[str, Any]]) -> str:
    """What somebody writes who knows the format."""
    before, told = "", []
    for value in values:
        value = {key: one for key, one in value.items() if key != "sha256"}
        before = _digest(before, value)
        told.append(json.dumps({**value, "sha256": before}) + "\n")
    return "".join(told)


HOSTILE: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "a champion": (
        lambda found: found[1].update(kind="alias", key="w/champion#000002"),
        "line 2 has an entry of kind `alias`",
    ),
    "a version under another's name": (
        lambda found: _first(found, "instruction")["body"].update(text="obey me"),
        "under a name that is not its own",
    ),
    "a path for a name": (
        lambda found: _first(found, "skill").update(key="../../etc/passwd"),
        "under a name that is not its own",
    ),
    "an episode under another's name": (
        lambda found: _first(found, "episode").update(key="ep-0123456789abcdef"),
        "under a name that is not its own",
    ),
    "a reply to a rollout to come": (
        lambda found: _first(found, "call").update(key="ep-0123456789abcdef/0-abc"),
        "belongs to no rollout of the file",
    ),
    "a rollout whose id is not its order's, with a reply": (
        lambda found: _lying(found), "belongs to no rollout of the file"
    ),
    "a score of nothing here": (
        lambda found: (
            _first(found, "score").update(key="ep-1/s/1"),
            _first(found, "score")["body"].update(episode="ep-1"),
        ),
        "belongs to no rollout of the file",
    ),
    "no record": (lambda found: _first(found, "episode")["body"].pop("task"), "is no episode"),
    "a time that is none": (lambda found: found[1].update(at="now"), "a time that is no number"),
    "a field more": (lambda found: found[1].update(seq=1), "does not have the fields"),
    "a wrong count": (lambda found: found[-1].update(rows=1), "says 1 entries"),
    "something after the end": (lambda found: found.append(found[1]), "stands after the end"),
    "no head": (lambda found: found.pop(0), "line 1 is not the head"),
}  # fmt: skip


def _first(found: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(one for one in found if one.get("kind") == kind)


def _lying(found: list[dict[str, Any]]) -> None:
    episode = _first(found, "episode")
    was, new = episode["key"], "ep-0123456789abcdef"
    episode["key"] = episode["body"]["id"] = new
    for one in found:
        if one.get("kind") in ("call", "score"):
            one["key"] = one["key"].replace(was, new)
        if one.get("kind") == "score" and one["body"]["episode"] == was:
            one["body"]["episode"] = new


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_line(
    ours: Archive, theirs: Archive, tmp_path: Path, name: str
) -> None:
    found = lines(ours, tmp_path)
    HOSTILE[name][0](found)
    (tmp_path / "bad.jsonl").write_text(signed(found))
    with pytest.raises(UsageError, match=HOSTILE[name][1]):
        load(theirs.log, tmp_path / "bad.jsonl")
    assert list(theirs.read()) == []


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_a_damaged_file_is_refused_whole(
    ours: Archive, theirs: Archive, tmp_path: Path, ending: str
) -> None:
    file = tmp_path / f"all{ending}"
    export(ours.log, file)
    whole = file.read_bytes()
    for number in range(40):
        at = len(whole) * number // 40
        file.write_bytes(whole[:at])
        with pytest.raises(UsageError):
            load(theirs.log, file)
        changed = bytearray(whole)
        changed[at] ^= 0x10
        file.write_bytes(changed)
        try:  # a bit of gzip's own header may mean nothing
            check(file)
        except UsageError:
            continue
        assert ending == ".jsonl.gz" and at < 10
    assert list(theirs.read()) == []


def test_traps_are_refused(theirs: Archive, tmp_path: Path) -> None:
    deep = tmp_path / "deep.jsonl"
    deep.write_text("[" * 100_000)
    with pytest.raises(UsageError, match="line 1 is not JSON"):
        load(theirs.log, deep)
    (tmp_path / "long.jsonl.zst").write_bytes(zstandard.compress(b"x" * (65 * 2**20)))
    with pytest.raises(UsageError, match="longer than"):
        load(theirs.log, tmp_path / "long.jsonl.zst")
    (tmp_path / "long.jsonl.gz").write_bytes(gzip.compress(b"x" * (65 * 2**20), 1))
    with pytest.raises(UsageError, match="longer than"):
        load(theirs.log, tmp_path / "long.jsonl.gz")
    with pytest.raises(UsageError, match="does not end in"):
        load(theirs.log, tmp_path / "all.tar")
    with pytest.raises(UsageError, match="cannot be read"):
        load(theirs.log, tmp_path / "missing.jsonl")


def test_an_export_never_replaces_a_file(ours: Archive, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("dear diary")
    with pytest.raises(UsageError, match="exists; give another name"):
        export(ours.log, tmp_path / "mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_text() == "dear diary"
    assert [path.name for path in tmp_path.glob(".*")] == []
