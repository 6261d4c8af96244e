"""The index: rebuilt with the same ids whatever happens to its folder; shared by processes."""

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
from agentloop.store.query import Draft


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


def nearest(index: Index, n: int = 30) -> list[list[str]]:
    return [[name for name, _ in index.near("skill", f"s{i}\n{i * i}", 3)] for i in range(n)]


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
    want = nearest(index)
    assert [names[0] for names in want] == [f"skill-{i}" for i in range(30)]
    index.close()
    DAMAGES[damage](path)
    path.mkdir(exist_ok=True)
    again = Index(path, Axes())
    again.drain(log)
    assert nearest(again) == want
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
    assert [names[0] for names in nearest(again)] == [f"skill-{i}" for i in range(30)]
    assert again.problems(log) == []
    again.close()
    log.close()


def test_a_drain_reads_only_what_is_new_and_rebuild_reads_all(tmp_path: Path, log: Log) -> None:
    index = Index(tmp_path / "index", Axes())
    assert index.near("skill", "s1", 3) == []
    assert (index.drain(log), index.drain(log)) == (30, 0)
    log.append([*skills(5, 30), Draft(kind="step", key="s", body=1)])
    assert (index.drain(log), index.drain(log)) == (5, 0)
    want = nearest(index, 35)
    assert index.rebuild(log) == 35
    assert nearest(index, 35) == want
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
    assert [names[0] for names in nearest(again, 35)] == [f"skill-{i}" for i in range(35)]
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
print(index.drain(log), len(index.near("skill", "s", 99)))
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
    assert len(index.near("skill", "s", 99)) == 30
    assert child(tmp_path) == "10 40"
    assert len(index.near("skill", "s", 99)) == 40
    assert index.near("skill", "s105\n11025", 1)[0][0] == "skill-105"
    log.append(skills(10, 30))
    assert index.drain(log) == 10 and len(index.near("skill", "s", 99)) == 50
    assert index.problems(log) == []
    index.close()
    log.close()


def test_one_writer_at_a_time(tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    holder, other = Index(tmp_path / "index", Axes()), Index(tmp_path / "index", Axes())
    monkeypatch.setattr("agentloop.store.index._LOCK_SECONDS", 0.1)
    with holder._exclusive(0.0) as held:
        assert held and other.drain(log) == 0 and other.near("skill", "s", 3) == []
        assert other.problems(log) == []
        with pytest.raises(StoreError, match="another process is writing"):
            other.rebuild(log)
    assert other.drain(log) == 30
    other.close()
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
