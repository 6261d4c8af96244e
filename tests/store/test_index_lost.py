"""An index that is lost or garbled, in any of its files, answers as before: the log has it all."""

import random
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from agentloop.store.archive import Archive
from agentloop.store.query import Draft

N = 120


class Axes:
    """An embedder for tests: a fixed random direction per text."""

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        rows = [np.random.default_rng(zlib.crc32(t.encode())).normal(size=16) for t in texts]
        return [list(map(float, row / np.linalg.norm(row))) for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("whole") / "home"
    home.mkdir()
    with Archive(home, Axes()) as archive:
        archive.log.append([
            Draft(kind="skill", key=f"skill-{i}", body={"name": f"s{i}", "description": f"{i * i}"})
            for i in range(N)
        ])  # fmt: skip
        archive.reindex()
    return home


def answers(archive: Archive) -> list[list[tuple[str, float]]]:
    found = [archive.search("skill", f"question {number}", 10) for number in range(20)]
    return [[(name, round(distance, 5)) for name, distance in hits] for hits in found]


def brute(number: int) -> list[str]:
    """The ten nearest, by looking at all."""
    [query] = Axes().embed([f"question {number}"])
    texts = [f"s{i}\n{i * i}" for i in range(N)]
    near = 1.0 - np.asarray(Axes().embed(texts)) @ np.asarray(query)
    return [f"skill-{at}" for at in np.argsort(near)[:10]]


def garble(path: Path) -> None:
    path.write_bytes(random.Random(path.name).randbytes(max(path.stat().st_size, 64)))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) // 3] ^= 0x40
    path.write_bytes(data)


HOW: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink, "garbled": garble, "cut": halve, "flipped": flip
}  # fmt: skip


def cases(home: Path) -> Iterator[tuple[str, Callable[[Path], object]]]:
    yield "all of it", lambda copy: shutil.rmtree(copy / "index")
    for path in sorted(one for one in (home / "index").rglob("*") if one.is_file()):
        name = str(path.relative_to(home))
        for how, damage in HOW.items():
            yield f"{name} {how}", lambda copy, name=name, damage=damage: damage(copy / name)


def test_every_loss_is_made_up_for(whole: Path, tmp_path: Path) -> None:
    with Archive(whole, Axes()) as archive:
        want = answers(archive)
    assert [[name for name, _ in hits] for hits in want] == [brute(n) for n in range(20)]
    done = 0
    for number, (name, damage) in enumerate(cases(whole)):
        copy = tmp_path / str(number)
        shutil.copytree(whole, copy)
        damage(copy)
        with Archive(copy, Axes()) as archive:
            assert answers(archive) == want, name
            assert archive.reindex() == N
            assert answers(archive) == want, name
            assert archive.verify() == {"ok": True, "rows": N, "problems": []}, name
        shutil.rmtree(copy)
        done += 1
    print(f"{done} losses")
    assert done >= 20
