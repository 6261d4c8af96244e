"""Whatever happens to the log's files: it is seen, and what is whole before it is recovered."""

import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from agentloop.errors import StoreError
from agentloop.store import head
from agentloop.store.chain import GENESIS, link
from agentloop.store.log import Log
from agentloop.store.query import Draft
from agentloop.store.salvage import prefix, salvage

ROWS = 48
Damage = Callable[[Path, random.Random], None]


def body(number: int, large: bool) -> dict[str, object]:
    noise = random.Random(number).randbytes(10_000 if large and number % 9 == 8 else 300).hex()
    return {"n": number, "noise": noise}


def write(folder: Path, *, open_wal: bool) -> list[tuple[object, ...]]:
    """A log of small entries; or, with `open_wal`, one with some that go on over several pages and
    the last of them in the WAL alone, as after a crash. Its rows."""
    folder.mkdir()
    log = Log(folder / "log.db")
    log.append(
        [Draft(kind="note", key=str(n), body=body(n, open_wal), at=float(n)) for n in range(32)]
    )
    if open_wal:
        log._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        for n in range(32, ROWS):
            log.append([Draft(kind="note", key=str(n), body=body(n, open_wal), at=n + 0.5)])
        copy = folder.with_name(folder.name + "-copy")
        shutil.copytree(folder, copy)
        log.close()
        shutil.rmtree(folder)
        copy.rename(folder)
    else:
        log.append(
            [Draft(kind="note", key=str(n), body=body(n, open_wal)) for n in range(32, ROWS)]
        )
        log.close()
    rows = rows_of(folder)
    assert len(rows) == ROWS
    return rows


def rows_of(folder: Path) -> list[tuple[object, ...]]:
    twin = folder.with_name(folder.name + "-twin")
    shutil.rmtree(twin, ignore_errors=True)
    shutil.copytree(folder, twin)
    db = sqlite3.connect(twin / "log.db")
    rows = db.execute("SELECT * FROM entry ORDER BY seq").fetchall()
    db.close()
    return rows


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Path, list[object]]]:
    root = tmp_path_factory.mktemp("whole")
    return {
        wal: (root / f"wal-{wal}", write(root / f"wal-{wal}", open_wal=wal))
        for wal in (False, True)
    }


def flip(folder: Path, dice: random.Random) -> None:
    file = dice.choice(files(folder))
    data = bytearray(file.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    file.write_bytes(data)


def truncate(folder: Path, dice: random.Random) -> None:
    file = dice.choice(files(folder))
    os.truncate(file, dice.randrange(file.stat().st_size))


def zero_page(folder: Path, dice: random.Random) -> None:
    data = bytearray((folder / "log.db").read_bytes())
    at = 4096 * dice.randrange(len(data) // 4096)
    data[at : at + 4096] = bytes(4096)
    (folder / "log.db").write_bytes(data)


def delete_wal(folder: Path, dice: random.Random) -> None:
    (folder / "log.db-wal").unlink(missing_ok=True)


def swap_rows(folder: Path, dice: random.Random) -> None:
    db = sqlite3.connect(folder / "log.db")
    one, two = sorted(dice.sample(range(1, ROWS + 1), 2))
    db.execute("UPDATE entry SET seq = -1 WHERE seq = ?", (one,))
    db.execute("UPDATE entry SET seq = ? WHERE seq = ?", (one, two))
    db.execute("UPDATE entry SET seq = ? WHERE seq = -1", (two,))
    db.commit()
    db.close()


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.name in ("log.db", "log.db-wal")]


def judged(folder: Path) -> tuple[bool, int]:
    """Whether the log says that all is well, and how many entries it says there are."""
    try:
        log = Log(folder / "log.db")
    except StoreError:
        return False, 0
    try:
        rows, problems = log.verify()
        return not problems, rows
    finally:
        log.close()


def mutate(
    home: tuple[Path, list[tuple[object, ...]]], folder: Path, damage: Damage, dice: random.Random
) -> str:
    """Damage a copy; what became of it. The copy must be told to be damaged, or be whole; and of a
    damaged one, every entry before the first that is no more as it was must come back."""
    whole, rows = home
    shutil.copytree(whole, folder)
    damage(folder, dice)
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept)
    sound, count = judged(folder)
    if sound:
        assert count == ROWS and rows_of(folder) == rows, "it was changed and nobody noticed"
    found = list(prefix(kept / "log.db"))
    assert found == rows[: len(found)]
    new = folder.with_name("new.db")
    assert salvage(kept / "log.db", new).rows == len(found)
    log = Log(new)
    assert log.verify() == (len(found), [])
    log.close()
    if damage is not swap_rows:  # which moves whole entries
        assert len(found) >= intact(whole, kept, rows), "a whole entry was left behind"
    for path in (folder, kept):
        shutil.rmtree(path)
    for path in folder.parent.glob("new.*"):
        path.unlink()
    return "harmless" if sound else "detected"


def places(whole: Path, rows: list[tuple[object, ...]]) -> list[set[int]]:
    """The pages of the file that each entry stands on, up to the first that is not in one piece
    there (its body goes on elsewhere, or it is in the WAL)."""
    data, found = (whole / "log.db").read_bytes(), []
    for row in rows:
        at, here = -1, set()
        piece = row[5] + row[6] + row[7]  # type: ignore[operator]
        while (at := data.find(piece, at + 1)) >= 0:
            here.add(at // 4096)
        if not here:
            break
        found.append(here)
    return found


def intact(whole: Path, damaged: Path, rows: list[tuple[object, ...]]) -> int:
    """How many of the first entries stand on pages that are as they were: a bound from below of
    what must come back."""
    was, now = (path.joinpath("log.db").read_bytes() for path in (whole, damaged))
    same = {
        at // 4096 for at in range(0, len(was), 4096) if was[at : at + 4096] == now[at : at + 4096]
    }
    return sum(1 for _ in takewhile(lambda pages: pages <= same, places(whole, rows)))


DAMAGES: dict[str, Damage] = {
    "flip": flip, "truncate": truncate, "zero a page": zero_page, "delete the WAL": delete_wal,
    "swap two rows": swap_rows,
}  # fmt: skip


def mutations(
    homes: dict[bool, tuple[Path, list[object]]], folder: Path, n: int
) -> Iterator[tuple[str, str]]:
    dice = random.Random(5)
    names = list(DAMAGES)
    for number in range(n):
        name = names[number % len(names)]
        wal = name == "delete the WAL" or bool(number // len(names) % 2)
        yield name, mutate(homes[wal], folder / "home", DAMAGES[name], dice)  # type: ignore[arg-type]


def test_damage_is_told_and_what_is_whole_comes_back(
    homes: dict[bool, tuple[Path, list[object]]], tmp_path: Path
) -> None:
    done = list(mutations(homes, tmp_path, 60))
    assert sum(what == "detected" for _, what in done) >= 30


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_2000_mutations(homes: dict[bool, tuple[Path, list[object]]], tmp_path: Path) -> None:
    """With every one of 512 truncations among them."""
    done = list(mutations(homes, tmp_path, 1488))
    for wal in homes:
        for number in range(256):

            def cut(folder: Path, dice: random.Random, number: int = number) -> None:
                file = files(folder)[-1]
                os.truncate(file, file.stat().st_size * number // 256)

            done.append(("truncate", mutate(homes[wal], tmp_path / "home", cut, random.Random())))  # type: ignore[arg-type]
    by_kind = {
        (name, what): sum(one == (name, what) for one in done) for name, what in sorted(set(done))
    }
    print(len(done), by_kind)
    assert len(done) == 2000


def test_nothing_is_lost_but_what_the_bad_page_holds(tmp_path: Path) -> None:
    rows = write(tmp_path / "home", open_wal=False)
    whole = (tmp_path / "home" / "log.db").read_bytes()
    lost = []
    for page in range(len(whole) // 4096):
        data = bytearray(whole)
        data[4096 * page : 4096 * (page + 1)] = bytes(4096)
        (tmp_path / "bad.db").write_bytes(data)
        lost.append(ROWS - len(list(prefix(tmp_path / "bad.db"))))
    assert lost[0] == 0, "the first page has no entries, though SQLite reads nothing without it"
    assert sorted(lost)[len(lost) // 4] == 0, "pages of the trees above hold no entries"
    assert max(lost) == ROWS and rows


def test_a_header_that_is_gone_costs_nothing(tmp_path: Path) -> None:
    rows = write(tmp_path / "home", open_wal=False)
    path = tmp_path / "home" / "log.db"
    path.write_bytes(os.urandom(100) + path.read_bytes()[100:])
    with pytest.raises(StoreError, match="store verify"):
        Log(path)
    assert list(prefix(path)) == rows


def test_what_comes_after_the_damage_is_counted_and_not_trusted(tmp_path: Path) -> None:
    write(tmp_path / "home", open_wal=False)
    db = sqlite3.connect(tmp_path / "home" / "log.db")
    db.execute("UPDATE entry SET at = at + 1 WHERE seq = 20")
    db.commit()
    db.close()
    kept = salvage(tmp_path / "home" / "log.db", tmp_path / "new.db")
    assert (kept.rows, kept.beyond) == (19, ROWS - 19)


def test_a_chain_is_followed_and_not_each_entry_for_itself(tmp_path: Path) -> None:
    rows = write(tmp_path / "home", open_wal=False)
    seq, kind, key, scope, at, stored, prev, _ = rows[19]
    forged = link(prev, seq, (kind, key, scope), at + 1, stored)  # type: ignore[operator, arg-type]
    db = sqlite3.connect(tmp_path / "home" / "log.db")
    db.execute("UPDATE entry SET at = at + 1, hash = ? WHERE seq = 20", (forged,))
    db.commit()
    db.close()
    found = list(prefix(tmp_path / "home" / "log.db"))
    assert len(found) == 20 and found[0][6] == GENESIS, "the one after it says otherwise"


def test_a_missing_end_is_told(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    log = Log(path)
    log.append([Draft(kind="note", key=str(n), body=n) for n in range(9)])
    assert log.verify() == (9, [])
    log._db.execute("DELETE FROM entry WHERE seq > 7")
    assert log.verify() == (7, ["entries 8 to 9 are missing at the end"])
    log.close()
    head.beside(path).write_bytes(b"torn")
    log = Log(path)
    assert log.verify() == (7, []), "a witness that cannot be read says nothing"
    log.append([Draft(kind="note", key="x", body=1)])
    log._db.execute("UPDATE entry SET hash = prev WHERE seq = 8")
    assert any("entry 8" in one for one in log.verify()[1])
    log.close()
