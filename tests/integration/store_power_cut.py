"""Power cuts without hardware: a writer's system calls in, the files that a cut leaves out.

`record` runs a program under `strace`, so it opens the log by the path that every user takes, and
keeps what it wrote, made durable and acknowledged (wrote to its standard output), in one order. A
`Disk` replays that. What was written since a file's last sync may be on the disk, or not, or in
part (sectors of 512 bytes), in any order; a name made or removed since its folder's last sync may
be there or not.
"""

import random
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
_CALLS = "openat,pwrite64,write,ftruncate,fallocate,fsync,fdatasync,unlink,rename"
_LINE = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\d+)")
_CUT_OFF = re.compile(r"^(\d+) +(\w+)\((.*) <unfinished \.\.\.>$")
_REST = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)$")
_FILE = re.compile(r"^\d+<([^>]*)>")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass
class Event:
    """`what` is write, truncate, sync, make, remove or ack; `name` is a file of the folder, empty
    for the folder itself."""

    what: str
    name: str
    at: int = 0
    data: bytes = b""


def tool() -> str | None:
    """Where `strace` is and may trace, else `None`."""
    found = shutil.which("strace")
    if found is None:
        return None
    tried = subprocess.run([found, "-o", "/dev/null", "true"], capture_output=True, check=False)
    return found if tried.returncode == 0 else None


def record(command: Sequence[str], folder: Path, trace: Path) -> list[Event]:
    """What `command` did to the files of `folder`, and what it acknowledged."""
    strace = ["strace", "-f", "-y", "-xx", "-s", "1000000", "-e", f"trace={_CALLS}"]
    done = subprocess.run(
        [*strace, "-o", str(trace), *command], stdout=subprocess.PIPE, timeout=300, check=False
    )
    assert done.returncode == 0
    return list(_events(trace, folder))


def _events(trace: Path, folder: Path) -> Iterator[Event]:
    known: set[str] = set()
    for call, given in _calls(trace):
        texts = [bytes.fromhex(text.replace("\\x", "")) for text in _TEXT.findall(given)]
        file = _FILE.match(given)
        path = Path(_decoded(file[1])) if file else Path(texts[0].decode()) if texts else Path()
        name = "" if path == folder else path.name
        if call == "write" and given.startswith("1<"):
            yield Event("ack", "", data=texts[0])
        elif name and (path.parent != folder or name.endswith("-shm")):
            continue  # shared memory is not for the disk
        elif call == "openat":
            opened = Path(texts[0].decode())
            if opened.parent == folder and "O_CREAT" in given and opened.name not in known:
                known.add(opened.name)
                if not opened.name.endswith("-shm"):
                    yield Event("make", opened.name)
        elif call in ("fsync", "fdatasync"):
            yield Event("sync", name)
        elif call in ("pwrite64", "write"):
            assert call == "pwrite64", "SQLite writes at an offset"
            yield Event("write", name, int(given.rpartition(", ")[2]), texts[0])
        elif call == "ftruncate":
            yield Event("truncate", name, int(given.rpartition(", ")[2]))
        elif call == "unlink":
            known.discard(name)
            yield Event("remove", name)
        else:
            raise AssertionError(f"{call} is not part of the model")


def _calls(trace: Path) -> Iterator[tuple[str, str]]:
    """(name, arguments) of calls that succeeded, in the order in which they returned."""
    open_: dict[str, tuple[str, str]] = {}
    with open(trace, encoding="ascii") as lines:
        for line in lines:
            if cut := _CUT_OFF.match(line):
                open_[cut[1]] = cut[2], cut[3]
                continue
            if rest := _REST.match(line):
                call, begun = open_.pop(rest[1])
                line = f"{rest[1]} {call}({begun}{rest[3]}"
            if (whole := _LINE.match(line)) and int(whole[4]) >= 0:
                yield whole[2], whole[3]


def _decoded(text: str) -> str:
    return bytes.fromhex(text.replace("\\x", "")).decode() if text.startswith("\\x") else text


@dataclass
class _Content:
    synced: bytearray = field(default_factory=bytearray)
    since: list[Event] = field(default_factory=list)


def _apply(content: bytearray, event: Event, sectors: Sequence[bool] | None = None) -> None:
    if event.what == "truncate":
        del content[event.at :]
        content.extend(bytes(event.at - len(content)))
        return
    end = event.at + len(event.data)
    content.extend(bytes(max(0, end - len(content))))
    for start in range(event.at, end, SECTOR):
        if sectors is None or sectors[(start - event.at) // SECTOR]:
            stop = min(start + SECTOR, end)
            content[start:stop] = event.data[start - event.at : stop - event.at]


class Disk:
    """The files of one folder while events happen to them."""

    def __init__(self) -> None:
        self._files: dict[str, _Content] = {}
        self._named: dict[str, _Content] = {}
        """What names led to at the last sync of the folder."""
        self.acknowledged: list[bytes] = []

    def happen(self, event: Event) -> None:
        """One more system call returned."""
        if event.what == "ack":
            self.acknowledged.append(event.data)
        elif event.what == "make":
            self._files.setdefault(event.name, _Content())
        elif event.what == "remove":
            del self._files[event.name]
        elif event.what == "sync" and not event.name:
            self._named = dict(self._files)
        elif event.what == "sync":
            content = self._files[event.name]
            for one in content.since:
                _apply(content.synced, one)
            content.since.clear()
        else:
            self._files[event.name].since.append(event)

    def cut(self, folder: Path, dice: random.Random) -> None:
        """Write what a power cut now leaves into `folder`."""
        kept = dice.choice((0.0, 0.5, 0.9, 1.0))
        for name in self._files.keys() | self._named.keys():
            now, then = self._files.get(name), self._named.get(name)
            found = now if now is then or dice.random() < kept else then
            if found is None:
                continue
            content = bytearray(found.synced)
            for event in found.since:
                if event.what == "truncate":
                    if dice.random() < kept:
                        _apply(content, event)
                    continue
                count = -(-len(event.data) // SECTOR)
                whole = dice.random() < 0.5
                first = dice.random() < kept
                sectors = [first if whole else dice.random() < kept for _ in range(count)]
                _apply(content, event, sectors)
            (folder / name).write_bytes(content)
