"""A file from anybody: refused whole, by its line, when it is damaged or says what it must not."""

import gzip
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from exchange_fixtures import lines, signed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentloop.errors import UsageError
from agentloop.store.archive import Archive
from agentloop.store.exchange import check, export, load

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
        lambda found: _lying(found), "under a name that is not its own"
    ),
    "a rollout that has no order": (
        lambda found: _first(found, "episode")["body"].pop("setup"),
        "under a name that is not its own",
    ),
    "a rollout whose id begins as one to come": (
        lambda found: _lying(found, _first(found, "episode")["key"] + "0"),
        "under a name that is not its own",
    ),
    "a failed rollout with a path for a name": (
        lambda found: _lying(found, f"ep-failed-{_first(found, 'episode')['key'][3:]}-/etc"),
        "under a name that is not its own",
    ),
    "a rollout with a score of its own": (
        lambda found: _first(found, "episode")["body"].update(
            score={"value": 1.0, "success": True, "source": "me"}
        ),
        "under a name that is not its own",
    ),
    "a rollout that stands under a cycle of this home": (
        lambda found: _first(found, "episode").update(scope="cycle-0123456789abcdef"),
        "has the scope",
    ),
    "a workflow that is a path": (
        lambda found: _first(found, "episode").update(scope="../../tmp/evil"), "has the scope"
    ),
    "a run that is a path": (
        lambda found: _first(found, "run").update(key="../x"), "under a name that is not its own"
    ),
    "a reply whose number is none": (
        lambda found: _first(found, "call").update(key=_first(found, "episode")["key"] + "/foo"),
        "under a name that is not its own",
    ),
    "a reply of nobody": (
        lambda found: _first(found, "call").update(key="/foo"), "under a name that is not its own"
    ),
    "a score that is no number": (
        lambda found: _first(found, "score")["body"]["score"].update(value=math.nan),
        "under a name that is not its own",
    ),
    "a score above 1": (
        lambda found: _first(found, "score")["body"]["score"].update(value=2.0),
        "under a name that is not its own",
    ),
    "a part of a score without an end": (
        lambda found: _first(found, "score")["body"]["score"].update(parts={"x": math.inf}),
        "under a name that is not its own",
    ),
    "a time without an end": (
        lambda found: found[1].update(at=10**400), "a time that is no number"
    ),
    "a time that no calendar has": (
        lambda found: found[1].update(at=1e300), "a time that is no number"
    ),
    "a name that SQLite cannot hold": (
        lambda found: _first(found, "run").update(key="run-\ud800"), "is no run"
    ),
    "a body without a bottom": (
        lambda found: _first(found, "run")["body"].update(more=_deep(300)), "nested deeper"
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


def _lying(found: list[dict[str, Any]], new: str = "ep-0123456789abcdef") -> None:
    episode = _first(found, "episode")
    was = episode["key"]
    episode["key"] = episode["body"]["id"] = new
    for one in found:
        if one.get("kind") in ("call", "score"):
            one["key"] = one["key"].replace(was, new)
        if one.get("kind") == "score" and one["body"]["episode"] == was:
            one["body"]["episode"] = new


def _deep(levels: int) -> Any:
    return [_deep(levels - 1)] if levels else 1


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


def _paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield before
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _paths(one, (*before, key))


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from([10**400, -(10**400), "\ud800", "../x", "", {}, [], {"a": [{}]}, 1e300]),
)  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_stands_in_a_file_it_is_imported_or_refused(
    ours: Archive, tmp_path: Path, data: st.DataObject
) -> None:
    found = lines(ours, _free(tmp_path))
    path = data.draw(st.sampled_from([one for one in _paths(found) if len(one) > 1]))
    place: Any = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = data.draw(ODD)
    file = _free(tmp_path) / "odd.jsonl"
    file.write_text(signed(found))
    with Archive(_free(tmp_path)) as archive:
        try:
            load(archive.log, file)
        except UsageError:
            assert list(archive.read()) == []
        else:
            assert archive.verify()["ok"] and len(archive.episodes()) <= 6


def _free(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))


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
