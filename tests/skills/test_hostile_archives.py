"""Names and archives that anyone may have made: refused in a sentence, and nothing written."""

from __future__ import annotations

import os
import stat
import tarfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest
from hostile_archives import DOCUMENT, KINDS, NAMES, a_tar, a_zip, info
from hypothesis import given, settings
from hypothesis import strategies as st

from agentloop.errors import UsageError
from agentloop.skills.archives import unpack_archive
from agentloop.skills.document import check
from agentloop.skills.folders import read_folder, write_folder
from agentloop.skills.library import export, from_files, gather, to_files
from agentloop.skills.paths import pack, unpack

GARBLED = a_tar((info("a/x"), b"x" * 700)), a_zip(("a/x", b"x" * 700), ("a/y/z", b"y"))


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else b""
        for path in sorted(root.rglob("*"))
    }


def refused(tmp_path: Path, data: bytes) -> bool:
    """Import and export again, as a person would; whether that was refused."""
    archive, inside = tmp_path / "archive", tmp_path / "in" / "side"
    inside.mkdir(parents=True)
    archive.write_bytes(data)
    before = tree(tmp_path)
    try:
        for skill in gather(archive):
            export(skill, inside)
    except UsageError as error:
        assert "\n" not in str(error) and "\x1b" not in str(error) and len(str(error)) < 400
        return True
    finally:
        written = tree(tmp_path).keys() - before.keys()
        assert all(Path(name).is_relative_to(inside / "a") for name in written)
    return False


def test_there_are_enough_of_them() -> None:
    assert len(set(NAMES)) + len(KINDS) >= 60


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("kind", ["zip", "tar", "gnu tar"])
def test_a_hostile_name_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    form = tarfile.GNU_FORMAT if kind == "gnu tar" else tarfile.PAX_FORMAT
    data = a_zip((name, b"x")) if kind == "zip" else a_tar((info(name), b"x"), form=form)
    if kind != "zip" and "\x00" in name:
        return  # the library ends it there: what is left is a plain name
    assert refused(tmp_path, data)


@pytest.mark.parametrize("name", [one for one in NAMES if "\x00" not in one], ids=ascii)
def test_a_hostile_name_in_a_record_is_not_exported(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        write_folder(tmp_path / "in" / "a", {"SKILL.md": DOCUMENT, name: b"x"})
    assert tree(tmp_path) == {} or list(tree(tmp_path)) == [str(tmp_path / "in")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_archive_is_refused_in_time_and_room(tmp_path: Path, kind: str) -> None:
    begun = time.process_time()
    with room():
        assert refused(tmp_path, KINDS[kind])
    assert time.process_time() - begun < 2


@contextmanager
def room() -> Iterator[None]:
    """At most 256 MiB are taken meanwhile."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 256 << 20
    finally:
        tracemalloc.stop()


def test_what_is_hidden_is_passed_over(tmp_path: Path) -> None:
    data = a_zip(("a/.git/config", b"x"), ("__MACOSX/a/x", b"x"), ("a/scripts/.x", b"x"))
    assert not refused(tmp_path, data)
    assert [p.name for p in (tmp_path / "in" / "side" / "a").iterdir()] == ["SKILL.md"]


# --- folders ------------------------------------------------------------------------------------


def put(tmp_path: Path) -> Path:
    folder = tmp_path / "skills" / "a"
    (folder / "scripts").mkdir(parents=True)
    (folder / "SKILL.md").write_bytes(DOCUMENT)
    return folder


@pytest.mark.parametrize("kind", ["link", "link to a folder", "dangling", "fifo", "name", "size"])
def test_a_folder_with_anything_but_plain_files_is_refused(tmp_path: Path, kind: str) -> None:
    folder, secret = put(tmp_path), tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    at = folder / "scripts" / ("é" if kind == "name" else "x")
    if kind == "fifo":
        os.mkfifo(at)
    elif kind == "name":
        at.write_text("x")
    elif kind == "size":
        at.write_bytes(bytes((2 << 20) + 1))
    else:
        ends = {"link": secret / "key", "link to a folder": secret, "dangling": tmp_path / "none"}
        at.symlink_to(ends[kind])
    with pytest.raises(UsageError, match=r"SKILL\.md"):
        gather(tmp_path / "skills")


def test_a_link_to_a_skill_is_not_followed(tmp_path: Path) -> None:
    folder = put(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").symlink_to(folder)
    with pytest.raises(UsageError, match="is a link"):
        gather(tmp_path / "other")


def test_a_folder_that_is_exchanged_for_a_link_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, secret = put(tmp_path), tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    (folder / "scripts" / "key").write_text("plain")
    looked = os.stat

    def exchange(name: str, **options: object) -> os.stat_result:
        found = looked(name, **options)  # type: ignore[arg-type]
        if name == "scripts":
            (folder / "scripts").rename(tmp_path / "moved")
            (folder / "scripts").symlink_to(secret)
        return found

    monkeypatch.setattr(os, "stat", exchange)
    with pytest.raises(UsageError):
        read_folder(folder)


# --- anything at all ----------------------------------------------------------------------------

PATHS = st.from_regex(r"[a-z]{1,4}(/[A-Za-z0-9_.+-]{1,5}){0,3}", fullmatch=True) | st.text(
    max_size=20
)
TOKENS = [
    "name: ", "a", "\n", "description: ", "metadata:", "  b: ", '"', "'", ">", "|", "- ", "{", "[",
    "&a ", "*a", "!!int ", "? ", ": ", "---\n", "#", "\t", "0x1", "2026-01-01", "~", "%YAML 9\n",
]  # fmt: skip
FRONTS = st.text(max_size=400) | st.lists(st.sampled_from(TOKENS), max_size=80).map("".join)
FLIPS = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=12)


def judge_front_matter(front: str) -> None:
    text = f"---\n{front}\n---\nbody\n"
    if not check(text):
        assert to_files(from_files({"SKILL.md": text.encode()}, where="x"))


def judge_archive(which: int, flips: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(GARBLED[which])
    for at, value in flips:
        data[at % len(data)] = value
    with suppress(UsageError):
        unpack_archive(bytes(data[: len(data) - cut]))


def judge_files(files: dict[str, bytes]) -> None:
    try:
        skill = from_files({**files, "SKILL.md": DOCUMENT}, where="x")
    except UsageError:
        return
    assert to_files(skill) == {**files, "SKILL.md": DOCUMENT}


WHICH, CUT = st.integers(0, 1), st.just(0) | st.integers(0, 400)
FILES = st.dictionaries(PATHS, st.binary(max_size=40) | st.text(max_size=20).map(str.encode))
FUZZED = [
    (judge_front_matter, (FRONTS,)), (judge_archive, (WHICH, FLIPS, CUT)), (judge_files, (FILES,)),
]  # fmt: skip


@pytest.mark.parametrize(("judge", "given_"), FUZZED, ids=["SKILL.md", "archive", "files"])
@pytest.mark.parametrize(
    "examples", [150, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_only_typed_errors(judge: object, given_: tuple[object, ...], examples: int) -> None:
    with (
        room() if examples > 150 else nullcontext()
    ):  # told of everything, it takes ten times as long
        settings(max_examples=examples, deadline=2000)(given(*given_)(judge))()  # type: ignore[arg-type]


@given(st.binary(max_size=60) | st.text(max_size=30).map(lambda text: text.encode(errors="ignore")))
def test_what_is_packed_is_unpacked(data: bytes) -> None:
    assert unpack(pack(data)) == data
    assert unpack(pack(b"data:;base64," + data)) == b"data:;base64," + data
