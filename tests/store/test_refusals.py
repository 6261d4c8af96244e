"""The system refuses: no descriptors, no permission, a disk that only reads or cannot be read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_index_lost import Axes

from agentloop.store.archive import Archive
from agentloop.store.log import Log
from agentloop.store.query import Draft

CODE = """
import json, os, resource, sys
from pathlib import Path
from agentloop.errors import AgentLoopError
from agentloop.records import Instruction
from agentloop.store.archive import Archive
import agentloop.store.vectors, agentloop.trajectories.codec
sys.path.insert(0, sys.argv[3])
from test_index_lost import Axes

import chromadb
from agentloop.trajectories.codec import to_json
to_json(Instruction(text="x")), Axes().embed(["x"])  # what is imported when first used
home, how = Path(sys.argv[1]), json.loads(sys.argv[2])
if how.get("nobody"):
    os.setgid(65534); os.setuid(65534)
if "files" in how:
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + how["files"],) * 2)
told = []
def attempt(name, work):
    try:
        work()
    except AgentLoopError as error:
        told.append([name, str(error)])
    except BaseException as error:
        told.append([name, "UNTYPED " + repr(error)])
    else:
        told.append([name, ""])
box = {}
def opened():
    box["archive"] = Archive(home, Axes())
attempt("open", opened)
if "archive" in box:
    archive = box["archive"]
    attempt("write", lambda: archive.put(Instruction(text="more")))
    attempt("read", lambda: list(archive.read()))
    attempt("search", lambda: archive.search("skill", "s1", 3))
    attempt("verify", lambda: archive.verify())
    attempt("close", archive.close)
print(json.dumps(told))
sys.stdout.flush()
os._exit(0)
"""


def make(home: Path) -> None:
    home.mkdir()
    log = Log(home / "log.db")
    log.append([
        Draft(kind="skill", key=f"skill-{i}", body={"name": f"s{i}", "description": f"{i}"})
        for i in range(20)
    ])  # fmt: skip
    log.close()
    with Archive(home, Axes()) as archive:
        archive.reindex()


def tried(home: Path, *before: str, **how: object) -> dict[str, str]:
    """What each use of the home came to: empty where it went well."""
    given = [str(home), json.dumps(how), str(Path(__file__).parent)]
    done = subprocess.run(
        [*before, sys.executable, "-c", CODE, *given],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = dict(json.loads(done.stdout.splitlines()[-1]))
    assert not [text for text in told.values() if text.startswith("UNTYPED")], told
    assert "Traceback" not in done.stderr, done.stderr
    return told


def sound(home: Path) -> None:
    log = Log(home / "log.db")
    rows, problems = log.verify()
    assert rows >= 20 and problems == []
    log.append([Draft(kind="note", key="after", body=1)])
    log.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_descriptors_run_out(tmp_path: Path) -> None:
    make(tmp_path / "home")
    refused = 0
    for files in range(32):
        told = tried(tmp_path / "home", files=files)
        refused += any(told.values())
        sound(tmp_path / "home")
    assert refused >= 5


def permitted(path: Path) -> None:
    """Let anybody reach a folder of the test's."""
    for one in (path, *path.parents):
        if one == Path("/tmp") or one == Path("/"):
            break
        one.chmod(one.stat().st_mode | 0o111)


MODES: dict[str, dict[str, int]] = {
    "the home is closed": {"": 0o000},
    "the home cannot be written": {"": 0o555},
    "the log is closed": {"log.db": 0o000},
    "the log cannot be written": {"log.db": 0o444},
    "the index is closed": {"index": 0o000},
    "the index cannot be written": {"index": 0o555},
    "the mark is closed": {"index/mark.json": 0o000},
    "the lock is closed": {"index/lock": 0o000},
    "the witness is closed": {"log.head": 0o000},
}


BORNE = ("the witness is closed", "the index cannot be written", "the mark is closed")
"""What hinders nobody."""


@pytest.mark.slow
@pytest.mark.parametrize("name", MODES)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody and clean up after it")
def test_permission_is_refused(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    make(home)
    assert not any(tried(home).values())
    permitted(tmp_path)
    for one in (home, *home.rglob("*")):
        os.chown(one, 65534, 65534)
    for part, mode in MODES[name].items():
        (home / part).chmod(mode)
    try:
        told = tried(home, nobody=True)
        bad = {what for what, text in told.items() if text}
        assert bad or name in BORNE, told
        if "index" in name or "lock" in name or "mark" in name:
            assert not {"open", "write", "read"} & bad, told
    finally:
        home.chmod(0o700)
        for one in home.rglob("*"):
            one.chmod(0o700 if one.is_dir() else 0o600)
            os.chown(one, 0, 0)
        os.chown(home, 0, 0)
    sound(home)


def mountable() -> bool:
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, check=False
    )
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not mountable(), reason="no mount namespace of one's own here")
@pytest.mark.parametrize("part", ["", "index"])
def test_a_disk_that_was_made_read_only(tmp_path: Path, part: str) -> None:
    home = tmp_path / "home"
    make(home)
    assert not any(tried(home).values())
    place = home / part
    script = (
        f"mount --bind '{place}' '{place}' && mount -o remount,bind,ro '{place}' && exec \"$@\""
    )
    told = tried(home, "unshare", "-rm", "sh", "-c", script, "sh")
    assert any(told.values())
    if part == "index":
        assert not told["write"] and not told["read"], "the log does not need the index"
    sound(home)


@pytest.mark.slow
@pytest.mark.skipif(not mountable(), reason="no mount namespace of one's own here")
@pytest.mark.parametrize("kib", [16, 64, 128, 256, 512])
def test_a_disk_without_room(tmp_path: Path, kib: int) -> None:
    """A tmpfs of so many KiB; what was acknowledged before is there when it has grown."""
    code = (
        "import sys, os; from pathlib import Path\n"
        "from agentloop.errors import StoreError; from agentloop.store.log import Log\n"
        "from agentloop.store.query import Draft\n"
        "n = 0\n"
        "try:\n"
        "    log = Log(Path('/mnt/log.db'))\n"
        "    while n < 1000:\n"
        "        log.append([Draft(kind='x', key=str(n), body=os.urandom(2000).hex())]); n += 1\n"
        "except StoreError as error: print('refused', error)\n"
        "os.system('mount -o remount,size=64m /mnt')\n"
        "log = Log(Path('/mnt/log.db'))\n"
        "assert log.verify() == (n, []), log.verify()\n"
        "assert log.append([Draft(kind='x', key='after', body=1)]) == [n + 1]\n"
        "print('whole', n)\n"
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size={kib}k none /mnt && exec \"$@\"",
         "sh", sys.executable, "-c", code],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "refused" in done.stdout and "whole" in done.stdout


@pytest.mark.parametrize("name", ["log.db", "log.db-wal", "log.head"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    """`/proc/self/mem` gives EIO, as a broken disk does."""
    home = tmp_path / "home"
    make(home)
    kept = (home / name).read_bytes() if (home / name).exists() else None
    (home / name).unlink(missing_ok=True)
    (home / name).symlink_to("/proc/self/mem")
    told = tried(home)
    assert told["open"] or name != "log.db"
    (home / name).unlink()
    if kept is not None:
        (home / name).write_bytes(kept)
    sound(home)
