"""The log: order, first write wins, group commit, fencing, migration, damage and full disks."""

import asyncio
import os
import random
import resource
import sqlite3
import stat
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentloop.errors import StoreError
from agentloop.store.log import Log
from agentloop.store.migrations import VERSION
from agentloop.store.query import Draft, Entry, Query
from agentloop.trajectories.redact import Redactor

HERE = Path(__file__).parent
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def draft(key: str, kind: str = "note", body: object = None, scope: str = "") -> Draft:
    return Draft(kind=kind, key=key, body=body, scope=scope)  # type: ignore[arg-type]


def episode(key: str, *, scope: str = "w", family: str = "f", **more: object) -> Draft:
    body = {
        "id": key, "task": {"id": "t" + key, "prompt": "p", "family": family}, "bundle": "b",
        "purpose": "train", "run": "r", "seed": 0,
    }  # fmt: skip
    return draft(key, "episode", body | more, scope)


def score(key: str, success: bool, number: int = 0) -> Draft:
    body = {"episode": key, "spec": "s", "score": {"value": 1.0, "success": success, "source": "x"}}
    return draft(f"{key}/s/{number}", "score", body)


def test_entries_come_back_in_order_and_only_for_the_owner(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.db")
    assert log.append([draft("a", body={"x": [1, 2]}), draft("b", scope="w")]) == [1, 2]
    log.append([draft(str(n), "many") for n in range(450)])  # more than two pages
    assert log.get("note", "a") == Entry(
        seq=1, kind="note", key="a", scope="", at=log.get("note", "a").at, body={"x": [1, 2]}
    )
    assert log.get("note", "zzz") is None
    assert [e.key for e in log.read(Query(kinds=("many",)))] == [str(n) for n in range(450)]
    assert [e.seq for e in log.read(Query(since_seq=1, until=4))] == [2, 3, 4]
    assert [e.seq for e in log.read(Query(kinds=("many", "note"), limit=250))] == [*range(1, 251)]
    assert [e.key for e in log.read(Query(scope="w"))] == ["b"]
    assert log.keys("many", "44") == ["44", *(f"44{n}" for n in range(10))]
    assert log.latest("many", "44").key == "449"
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert log.verify() == (452, [])
    log.close()


def test_first_write_wins(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.db")
    assert log.append([draft("a", body=1), draft("a", body=2), draft("b")]) == [1, 1, 2]
    assert log.append([draft("c"), draft("a", body=3)]) == [3, 1]
    assert log.get("note", "a").body == 1
    log.close()


def test_names_that_are_known_are_told_apart_within_a_batch(tmp_path: Path) -> None:
    """Facts follow the entries that are written, in their order, and those alone."""
    log, other = Log(tmp_path / "log.db"), Log(tmp_path / "log.db")
    other.append([episode("b", bundle="first")])
    batch = [
        score("a", False), episode("a"), episode("b", bundle="second"), score("a", True, 1),
        episode("a", bundle="late"), score("a", False), score("b", True), draft("n"), draft("n"),
    ]  # fmt: skip
    assert log.append(batch) == [2, 3, 1, 4, 3, 2, 5, 6, 6]
    assert other.append([*batch, draft("o")]) == [2, 3, 1, 4, 3, 2, 5, 6, 6, 7]
    found = {
        e.key: (e.body["bundle"], s and s.seq) for e, s in log.scored(Query(kinds=("episode",)))
    }
    assert found == {"a": ("b", 4), "b": ("first", 5)}
    assert [e.key for e, _ in log.scored(Query(success=True))] == ["b", "a"]
    assert log.verify() == (7, [])
    log.close()
    other.close()


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(bodies=st.lists(JSON, max_size=4))
def test_any_json_survives(tmp_path: Path, bodies: list[object]) -> None:
    log = Log(tmp_path / f"{uuid.uuid4()}.db", redact=Redactor({}))
    log.append([draft(str(n), body=body) for n, body in enumerate(bodies)])
    assert [entry.body for entry in log.read()] == bodies
    assert log.verify() == (len(bodies), [])
    log.close()


def test_a_bad_draft_fails_alone(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.db")

    async def append() -> list[object]:
        bad = [object(), {"n": object()}]
        waiting = [log.append_async([draft(f"g{n}")]) for n in range(5)]
        waiting += [log.append_async([draft(f"b{n}", body=body)]) for n, body in enumerate(bad)]
        waiting.append(log.append_async([draft("b\ud800")]))
        waiting.append(log.append_async([draft("x", "episode", {"no": "task"})]))
        return await asyncio.gather(*waiting, return_exceptions=True)

    results = asyncio.run(append())
    assert sorted(r[0] for r in results[:5]) == [1, 2, 3, 4, 5]
    assert all(isinstance(r, StoreError) for r in results[5:]), results
    assert log.verify() == (5, [])
    log.close()


def test_concurrent_tasks_share_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path / "log.db")
    commits: list[str] = []
    log._db.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)

    async def append() -> list[list[int]]:
        return await asyncio.gather(*(log.append_async([draft(str(n))]) for n in range(500)))

    seqs = asyncio.run(append())
    assert sorted(s for (s,) in seqs) == list(range(1, 501))
    assert len(commits) <= 50, "each append paid for its own fsync"
    log.close()


def test_queries_choose_episodes_by_their_latest_score(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.db")
    log.append([score("late", True)])  # its episode comes from a slower process
    log.append([
        episode("a"), episode("b", family="g"), episode("late"), episode("c", purpose="eval"),
        episode("own", score={"value": 1.0, "success": True, "source": "x"}),
        score("a", True), score("b", False, 1), score("b", True, 2), score("a", False, 3),
    ])  # fmt: skip

    def keys(**what: object) -> list[str]:
        return [e.key for e, _ in log.scored(Query(kinds=("episode",), **what))]  # type: ignore[arg-type]

    assert keys(success=True) == ["b", "late", "own"]
    assert keys(success=False) == ["a"]
    assert keys(family="g") == keys(task="tb") == ["b"]
    assert keys(purpose="eval", scope="w", run="r", bundle="b") == ["c"]
    assert keys(purpose="eval", run="other") == []
    assert keys() == ["a", "b", "late", "c", "own"]
    latest = {e.key: s and s.key for e, s in log.scored(Query(kinds=("episode",)))}
    assert latest == {"a": "a/s/3", "b": "b/s/2", "late": "late/s/0", "c": None, "own": None}
    assert log.verify() == (10, [])
    log.close()


def test_leases_are_exclusive_and_stale_holders_are_refused(tmp_path: Path) -> None:
    log, other = Log(tmp_path / "log.db"), Log(tmp_path / "log.db")
    first = log.lease("cycle", "one", 30)
    with pytest.raises(StoreError, match="held by one"):
        other.lease("cycle", "two", 30)
    log.append([draft("a")], fence=("cycle", first))
    log.renew("cycle", first, 0.0)  # expires at once, as if its holder slept
    log.append([draft("b")], fence=("cycle", first))  # nobody else acted yet
    second = other.lease("cycle", "two", 30)
    assert second > first
    for stale in (lambda: log.append([draft("c")], fence=("cycle", first)),
                  lambda: log.renew("cycle", first, 30),
                  lambda: log.append([draft("c")], fence=("never", 1))):  # fmt: skip
        with pytest.raises(StoreError, match="lost"):
            stale()
    log.release("cycle", first)  # must not free the new holder's
    other.append([draft("d")], fence=("cycle", second))
    other.release("cycle", second)
    with pytest.raises(StoreError, match="lost"):
        other.append([draft("e")], fence=("cycle", second))
    assert log.lease("cycle", "three", 30) > second
    assert [e.key for e in log.read()] == ["a", "b", "d"]
    log.close()
    other.close()


def test_a_refused_fence_does_not_stop_its_neighbours(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.db")

    async def append() -> list[object]:
        return await asyncio.gather(
            log.append_async([draft("a")]),
            log.append_async([draft("b")], fence=("cycle", 1)),
            log.append_async([draft("c")]),
            return_exceptions=True,
        )

    a, b, c = asyncio.run(append())
    assert (a, c) == ([1], [2]) and isinstance(b, StoreError)
    log.close()


def test_a_file_of_version_1_ends_with_the_same_data(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    db = sqlite3.connect(path)
    db.executescript((HERE / "log_v1.sql").read_text())
    before = db.execute("SELECT * FROM entry ORDER BY seq").fetchall()
    db.close()
    log = Log(path)
    assert log.verify() == (5, [])
    assert [e.key for e, _ in log.scored(Query(success=True))] == ["ep-1"]
    assert [e.key for e, _ in log.scored(Query(success=False))] == ["ep-2"]
    assert log.get("episode", "ep-2").body["answer"] == "5 \ud800"
    assert log.append([draft("new")]) == [6]
    assert log.lease("cycle", "me", 1) == 4, "tokens must go on growing"
    log.close()
    db = sqlite3.connect(path)
    assert db.execute("SELECT * FROM entry WHERE seq <= 5 ORDER BY seq").fetchall() == before
    names = [name for (name,) in db.execute("SELECT name FROM migration ORDER BY number")]
    assert names == ["entry", "episode_fact", "episode_order"]
    db.close()


def test_a_newer_or_foreign_file_is_refused_unharmed(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    Log(path).close()
    db = sqlite3.connect(path)
    db.execute("INSERT INTO migration VALUES (?, 'of_next_year', 0)", (VERSION + 1,))
    db.commit()
    db.close()
    with pytest.raises(StoreError, match=f"schema version {VERSION + 1} .`of_next_year`.*upgrade"):
        Log(path)
    foreign = tmp_path / "notes.txt"
    foreign.write_text("dear diary " * 500)
    with pytest.raises(StoreError, match="not a database"):
        Log(foreign)
    assert foreign.read_text() == "dear diary " * 500
    with pytest.raises(StoreError, match=r"unable to open|No such file"):
        Log(tmp_path / "no" / "log.db")


def content(path: Path) -> object:
    log = Log(path)
    try:
        return list(log.read()), [(e.seq, s and s.seq) for e, s in log.scored(Query(scope="w"))]
    finally:
        log.close()


def test_flipped_bits_are_told_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    log = Log(path)
    log.append([episode(f"e{n}", noise=os.urandom(800).hex()) for n in range(30)])
    log.append([score(f"e{n}", n % 2 == 0) for n in range(30)])
    log.close()
    whole, want = path.read_bytes(), content(path)
    assert not path.with_name("log.db-wal").exists()
    dice, told = random.Random(0), 0
    for _ in range(120):
        at = dice.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[at] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        for extra in ("-wal", "-shm"):
            path.with_name(path.name + extra).unlink(missing_ok=True)
        try:
            log = Log(path)
        except StoreError:
            told += 1
            continue
        _, problems = log.verify()
        log.close()
        if problems:
            told += 1
        else:
            assert content(path) == want, f"byte {at} was changed and nobody noticed"
        for extra in ("-wal", "-shm"):
            path.with_name(path.name + extra).unlink(missing_ok=True)
    assert told >= 40, "too few flips hit what matters; the test shows little"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE entry SET scope = 'x' WHERE seq = 3",
        "UPDATE entry SET at = at + 1 WHERE seq = 3",
        "UPDATE entry SET body = (SELECT body FROM entry WHERE seq = 4) WHERE seq = 3",
        "UPDATE entry SET body = 'text' WHERE seq = 3",
        "DELETE FROM entry WHERE seq = 3",
        "UPDATE entry SET seq = seq + 100 WHERE seq >= 3",
        "UPDATE episode_fact SET success = 1 WHERE id = 'e3'",
        "DELETE FROM episode_fact WHERE id = 'e3'",
    ],
)
def test_tampering_is_told(tmp_path: Path, change: str) -> None:
    log = Log(tmp_path / "log.db")
    log.append([episode(f"e{n}", answer=str(n)) for n in range(6)])
    assert log.verify() == (6, [])
    db = sqlite3.connect(log.path)
    db.execute(change)
    db.commit()
    db.close()
    assert log.verify()[1]
    log.close()


@pytest.mark.parametrize("body", ["x''", "x'00'", "x'28b52ffd00'", "x'28b52ffdff'", "'text'", "7"])
def test_a_damaged_body_is_a_typed_error_when_read(tmp_path: Path, body: str) -> None:
    log = Log(tmp_path / "log.db")
    log.append([draft("a")])
    db = sqlite3.connect(log.path)
    db.execute(f"UPDATE entry SET body = {body}")
    db.commit()
    db.close()
    with pytest.raises(StoreError, match="store verify"):
        log.get("note", "a")
    log.close()


def test_a_full_disk_is_typed_and_leaves_a_sound_log(tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    code = (
        "import sys, os; from pathlib import Path\n"
        "from agentloop.errors import StoreError; from agentloop.store.log import Log\n"
        "from agentloop.store.query import Draft\n"
        "log = Log(Path(sys.argv[1])); n = 0\n"
        "try:\n"
        "    while n < 1000:\n"
        "        log.append([Draft(kind='x', key=str(n), body=os.urandom(2000).hex())]); n += 1\n"
        "except StoreError as error: print(n, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log.db")],
        capture_output=True, text=True, preexec_fn=limited, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    acknowledged = int(done.stdout.split()[0])
    assert 10 < acknowledged < 1000 and "cannot be used" in done.stdout
    log = Log(tmp_path / "log.db")
    assert log.verify() == (acknowledged, [])
    assert log.append([draft("after")]) == [acknowledged + 1]
    log.close()


def test_a_full_database_says_so_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.db")
    pages = log._db.execute("PRAGMA page_count").fetchone()[0]
    log._db.execute(f"PRAGMA max_page_count = {pages + 8}")
    done = 0
    with pytest.raises(StoreError, match=r"full.*free some space"):
        for done in range(100):
            log.append([draft(str(done), body=os.urandom(1000).hex())])
    assert done > 2 and log.verify() == (done, [])
    log._db.execute("PRAGMA max_page_count = 100000")
    log.append([draft(str(done))])
    assert log.verify() == (done + 1, [])
    log.close()


def test_secrets_do_not_reach_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct-horse-battery")
    log = Log(tmp_path / "log.db")
    log.append([draft("a", body={"said": "it is correct-horse-battery, see"})])
    assert log.get("note", "a").body == {"said": "it is [redacted:MY_SERVICE_TOKEN], see"}
    hidden = {1: ("it is", "correct-horse-battery"), "raw": b"correct-horse-battery"}
    log.append([draft("b", body=hidden)])  # what JSON writes is searched, not what was given
    mark = "[redacted:MY_SERVICE_TOKEN]"
    assert log.get("note", "b").body == {"1": ["it is", mark], "raw": mark}
    log.close()
    with pytest.raises(StoreError, match="closed"):
        log.append([draft("c")])
