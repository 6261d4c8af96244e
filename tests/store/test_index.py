"""The index: rebuilt with the same ids whatever happens to its folder; shared by processes."""

import fcntl
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from agentloop.errors import StoreError
from agentloop.store.embed import WordLlamaEmbedder
from agentloop.store.index import Index
from agentloop.store.log import Log
from agentloop.store.mark import locked, published
from agentloop.store.query import Draft, Query


class Axes:
    """An embedder for tests: a fixed random direction per text."""

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        rows = [np.random.default_rng(zlib.crc32(t.encode())).normal(size=16) for t in texts]
        return [list(map(float, row / np.linalg.norm(row))) for row in rows]


def skills(n: int, start: int = 0) -> list[Draft]:
    return [
        Draft(kind="skill", key=f"skill-{i}", body={"name": f"s{i}", "description": f"{i * i}"})
        for i in range(start, start + n)
    ]


def nearest(index: Index, log: Log, n: int = 30) -> list[list[str]]:
    return [[name for name, _ in index.near(log, "skill", f"s{i}\n{i * i}", 3)] for i in range(n)]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = Log(tmp_path / "log.db")
    log.append(skills(30))
    return log


def vectors(index: Path) -> list[Path]:
    return sorted(index.glob("chroma-*/*/data_level0.bin"))


def garble(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "everything gone": shutil.rmtree,
    "mark gone": lambda index: (index / "mark.json").unlink(),
    "mark garbled": lambda index: (index / "mark.json").write_bytes(b'{"folder": 1}'),
    "mark leads out": lambda index: (index / "mark.json").write_text('{"folder": "../.."}'),
    "folder gone": lambda index: shutil.rmtree(next(index.glob("chroma-*"))),
    "database garbled": lambda index: garble(next(index.glob("chroma-*/chroma.sqlite3"))),
    "database gone": lambda index: next(index.glob("chroma-*/chroma.sqlite3")).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_built_again(tmp_path: Path, log: Log, damage: str) -> None:
    path = tmp_path / "index"
    index = Index(path, Axes())
    index.drain(log)
    want = nearest(index, log)
    assert [names[0] for names in want] == [f"skill-{i}" for i in range(30)]
    index.close()
    DAMAGES[damage](path)
    path.mkdir(exist_ok=True)
    again = Index(path, Axes())
    again.drain(log)
    assert nearest(again, log) == want
    assert again.problems(log) == []
    assert len(list(path.glob("chroma-*"))) == 1
    again.close()
    log.close()


def test_garbled_vectors_are_seen_before_chroma_crashes_on_them(tmp_path: Path, log: Log) -> None:
    log.append(skills(1100, 30))  # enough for Chroma to write its vector files
    index = Index(tmp_path / "index", Axes())
    index.drain(log)
    index.close()
    assert vectors(index.path), "the test needs vector files to garble"
    garble(vectors(index.path)[0])
    again = Index(index.path, Axes())
    assert again.problems(log) == ["index: damaged; run: agentloop store reindex"]
    assert again.drain(log) == 1130
    assert [names[0] for names in nearest(again, log)] == [f"skill-{i}" for i in range(30)]
    assert again.problems(log) == []
    again.close()
    log.close()


def test_a_drain_reads_only_what_is_new_and_rebuild_reads_all(tmp_path: Path, log: Log) -> None:
    index = Index(tmp_path / "index", Axes())
    assert (index.drain(log), index.drain(log)) == (30, 0)
    log.append([*skills(5, 30), Draft(kind="step", key="s", body=1)])
    assert (index.drain(log), index.drain(log)) == (5, 0)
    want = nearest(index, log, 35)
    assert index.rebuild(log) == 35
    assert nearest(index, log, 35) == want
    index.close()
    log.close()


def test_a_lost_mark_after_a_crash_indexes_nothing_twice(tmp_path: Path, log: Log) -> None:
    index = Index(tmp_path / "index", Axes())
    index.drain(log)
    mark = (index.path / "mark.json").read_bytes()
    log.append(skills(5, 30))
    index.drain(log)
    index.close()
    (index.path / "mark.json").write_bytes(mark)  # killed between the rows and the mark
    again = Index(index.path, Axes())
    assert again.drain(log) in (5, 35)
    assert again.problems(log) == []
    assert [names[0] for names in nearest(again, log, 35)] == [f"skill-{i}" for i in range(35)]
    again.close()
    log.close()


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_index import Axes, skills
from agentloop.store.index import Index
from agentloop.store.log import Log
home = Path(sys.argv[1])
log, index = Log(home / "log.db"), Index(home / "index", Axes())
log.append(skills(10, 100))
print(index.drain(log), len(index.near(log, "skill", "s", 99)))
index.close(); log.close()
"""


def child(home: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(home), str(Path(__file__).parent)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_open_reader_sees_what_another_process_indexed(tmp_path: Path, log: Log) -> None:
    index = Index(tmp_path / "index", Axes())
    index.drain(log)
    assert len(index.near(log, "skill", "s", 99)) == 30
    assert child(tmp_path) == "10 40"
    assert len(index.near(log, "skill", "s", 99)) == 40
    assert index.near(log, "skill", "s105\n11025", 1)[0][0] == "skill-105"
    log.append(skills(10, 30))
    assert index.drain(log) == 10 and len(index.near(log, "skill", "s", 99)) == 50
    assert index.problems(log) == []
    index.close()
    log.close()


def test_one_writer_at_a_time(tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    holder, other = Index(tmp_path / "index", Axes()), Index(tmp_path / "index", Axes())
    monkeypatch.setattr("agentloop.store.index._LOCK_SECONDS", 0.1)
    with locked(holder.path, fcntl.LOCK_EX, 0.0) as held:
        assert held and other.drain(log) == 0
        assert nearest(other, log)[7][0] == "skill-7", "nothing is published: found in the log"
        assert other.problems(log) == []
        with pytest.raises(StoreError, match="another process is writing"):
            other.rebuild(log)
    assert other.drain(log) == 30
    other.close()
    log.close()


def test_a_search_goes_on_beside_a_drain_and_sees_new_entries(tmp_path: Path, log: Log) -> None:
    reader, writer = Index(tmp_path / "index", Axes()), Index(tmp_path / "index", Axes())
    writer.drain(log)
    assert nearest(reader, log)[3][0] == "skill-3"
    log.append(skills(5, 30))
    writer.drain(log)  # the reader's folder is behind now
    log.append(skills(5, 35))
    with locked(writer.path, fcntl.LOCK_EX, 0.0):
        assert [names[0] for names in nearest(reader, log, 40)] == [f"skill-{i}" for i in range(40)]
        stranger = Index(tmp_path / "index", Axes())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("agentloop.store.index._LOCK_SECONDS", 0.1)
            with pytest.raises(StoreError, match="another process is writing"):
                stranger.near(log, "skill", "s1", 3)  # has nothing open, so it had to wait
    assert nearest(stranger, log, 40) == nearest(reader, log, 40) == nearest(writer, log, 40)
    for index in (reader, writer, stranger):
        index.close()
    log.close()


def test_a_long_tail_is_drained_in_the_background(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentloop.store.index.TAIL", 20)
    index = Index(tmp_path / "index", Axes())
    assert published(index.path) is None
    want = nearest(index, log)
    log.append(skills(15, 30))
    index.close()  # waits for it
    mark = published(index.path)
    assert mark is not None and mark.rows["skill"] >= 30
    again = Index(index.path, Axes())
    assert [names[0] for names in nearest(again, log, 45)] == [f"skill-{i}" for i in range(45)]
    assert [names[0] for names in want] == [f"skill-{i}" for i in range(30)]
    assert again.problems(log) == []
    again.close()
    log.close()


def test_a_lost_index_is_made_up_for_from_the_log(tmp_path: Path, log: Log) -> None:
    index = Index(tmp_path / "index", Axes())
    index.drain(log)
    log.append(skills(1, 30))
    nearest(index, log)
    index._shut()  # as after an error of Chroma
    shutil.rmtree(index.path)
    index.path.mkdir()
    assert [names[0] for names in nearest(index, log, 31)] == [f"skill-{i}" for i in range(31)]
    index.close()
    log.close()


def test_a_failed_drain_is_raised_by_the_next_search(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentloop.store.index.TAIL", 20)
    index = Index(tmp_path / "index", Axes())
    (tmp_path / "index" / "mark.json.new").mkdir()  # the mark cannot be written
    assert index.near(log, "skill", "s1", 1)
    index._drainer.submit(int).result()  # the drain before it is done
    assert not list(index.path.glob("chroma-*")), "what a failed build wrote fills the disk"
    with pytest.raises(StoreError, match="cannot be written"):
        index.near(log, "skill", "s1", 1)
    index.close()
    log.close()


@pytest.mark.parametrize("drained", [True, False])
def test_conditions_are_asked_of_the_log(tmp_path: Path, log: Log, drained: bool) -> None:
    def draft(n: int) -> Draft:
        body = {
            "id": f"e{n}", "task": {"id": f"t{n}", "prompt": f"p{n}"}, "bundle": "b",
            "purpose": "eval" if n % 7 == 0 else "train", "run": "r", "seed": 0,
        }  # fmt: skip
        return Draft(kind="episode", key=f"e{n}", body=body, scope="w" if n < 500 else "v")

    log.append([draft(n) for n in range(600)])
    index = Index(tmp_path / "index", Axes())
    if drained:
        index.drain(log)

    def found(k: int, **given: object) -> set[str]:
        where = Query(kinds=("episode",), **given)  # type: ignore[arg-type]
        return {name for name, _ in index.near(log, "episode", "p5", k, where)}

    assert found(600) == {f"e{n}" for n in range(600)}
    assert found(600, purpose="eval") == {f"e{n}" for n in range(0, 600, 7)}
    assert found(5, task="t599") == {"e599"}, "one in six hundred, not among the nearest"
    assert len(found(5, scope="v")) == 5 and found(5, success=True) == set()
    score = {"value": 1.0, "success": True, "source": "x"}
    log.append([Draft(kind="score", key="late", body={"episode": "e3", "score": score})])
    assert found(5, success=True) == {"e3"}, "a score that came after its episode was indexed"
    index.close()
    log.close()


def test_the_default_embedder_is_offline_unit_and_means_something() -> None:
    embed = WordLlamaEmbedder().embed
    texts = ["greatest common divisor of two numbers", "count the letters in a word", "",
             "find the gcd of 12 and 18"]  # fmt: skip
    rows = np.array(embed(texts))
    assert rows.shape == (4, 256) and np.allclose(np.linalg.norm(rows, axis=1), 1.0)
    assert rows[3] @ rows[0] > rows[3] @ rows[1] + 0.1
    assert embed([]) == []
    assert np.allclose(embed(texts[:1])[0], rows[0]), "the company of a text must not matter"
