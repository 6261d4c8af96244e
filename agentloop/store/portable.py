"""The file that trajectories travel in: a line of JSON per entry, each with a hash that covers the
line before it.

Goes in: entries, or a path. Comes out: the file, or its entries, each checked against its line's
hash and its kind. Decision: what a home would choke on later, or take for its own, is refused here
by its line: a file may come from anybody.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from agentloop.errors import StoreError, UsageError
from agentloop.records import Completion, Episode, Json, Score, artifact_id, attempt_of, order_id
from agentloop.store import facts
from agentloop.store.artifacts import KINDS as ARTIFACTS
from agentloop.store.query import Draft, Entry
from agentloop.trajectories.codec import from_json

FORMAT = 1
_HEADER: dict[str, Json] = {"agentloop": "export", "format": FORMAT}
_LINE = 64 * 2**20
"""Characters in a line; a longer one is nobody's trajectory."""
_WRONG = (StoreError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError)
"""What a body of another shape may raise."""
_DEPTH = 100
"""Of what is in a line; deeper down no record of ours has anything."""
_RUN = {"purpose": str, "seed": int, "plan": str, "bundle": str}
KINDS = ("episode", "score", "call", "run", *ARTIFACTS)
ENDINGS = (".jsonl", ".jsonl.zst", ".jsonl.gz")
_NAME = re.compile(r"(?![.~])[^/\\\0]{1,200}")
"""Of a run or a workflow: never a path."""
_EPISODE = re.compile(r"ep-(failed-)?[0-9a-f]{16}(?(1)-[0-9.]{1,40})")
_REPLY = re.compile(r"ep-[0-9a-f]{16}/[0-9]{1,6}-[0-9a-z]{1,64}")
_RUN_ID = re.compile(r"(run|cycle)-[0-9a-f]{16}")
_LATEST = 1e11
"""Unix seconds in the year 5138; every time before it is one that a calendar has."""


def entries(path: Path) -> Iterator[Draft]:
    """The entries of an exported file, each checked. Raises `UsageError`."""
    ending(path)
    before, count, ended = "", 0, False
    for number, line in enumerate(_lines(path), 1):
        value = _object(path, number, line)
        if ended:
            raise bad(path, number, "stands after the end")
        digest = value.pop("sha256", None)
        if digest != _digest(before, value):
            raise bad(path, number, "does not match its hash")
        before = str(digest)
        if number == 1:
            if value != _HEADER:
                raise bad(path, number, f"is not the head of an export of format {FORMAT}")
        elif "rows" in value:
            if value != {"rows": count}:
                raise bad(path, number, f"says {value['rows']} entries, and {count} are there")
            ended = True
        else:
            count += 1
            yield _draft(path, number, value)
    if not ended:
        raise UsageError(f"`{path}` has no end: it was cut off; export it again")


def write(out: IO[bytes], chosen: Iterator[Entry]) -> int:
    """Write a file to `out`; how many entries."""
    before, count = _put(out, "", dict(_HEADER)), 0
    for entry in chosen:
        value = asdict(entry)
        del value["seq"]
        before = _put(out, before, value)
        count += 1
    _put(out, before, {"rows": count})
    return count


def _put(out: IO[bytes], before: str, value: dict[str, Json]) -> str:
    digest = _digest(before, value)
    out.write(_text({**value, "sha256": digest}) + b"\n")
    return digest


def _digest(before: str, value: dict[str, Json]) -> str:
    return hashlib.sha256(before.encode() + _text(value)).hexdigest()


def _text(value: dict[str, Json]) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def ending(path: Path) -> None:
    """Raises `UsageError` unless the name ends as an exported file's does."""
    if not path.name.endswith(ENDINGS):
        raise UsageError(f"`{path.name}` does not end in {', '.join(ENDINGS)}; name it so")


def packed(file: IO[bytes], path: Path) -> IO[bytes]:
    """`file`, packed as the name says; closing it leaves `file` open."""
    if path.suffix == ".zst":
        return cast(IO[bytes], zstandard.ZstdCompressor(3).stream_writer(file, closefd=False))
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0))
    return io.BufferedWriter(_Kept(file))


class _Kept(io.RawIOBase):
    """A file that closing does not close, as the packers do it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of at most `_LINE` bytes, unpacked on the way: never the whole file at once."""
    number = 0
    try:
        with path.open("rb") as file, _unpacked(file, path) as lines:
            while line := lines.readline(_LINE + 1):
                number += 1
                if len(line) > _LINE:
                    raise bad(path, number, f"is longer than {_LINE} bytes")
                yield line
    except OSError as error:  # gzip's own errors too
        raise UsageError(f"`{path}` cannot be read after line {number}: {error}") from error
    except (EOFError, zlib.error, zstandard.ZstdError) as error:
        raise UsageError(f"`{path}` is damaged after line {number}: {error}") from error


def _unpacked(file: IO[bytes], path: Path) -> io.BufferedReader:
    if path.suffix == ".zst":
        stream = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(file)
        return io.BufferedReader(cast(io.RawIOBase, stream))
    if path.suffix == ".gz":
        return io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file)))
    return cast(io.BufferedReader, file)


def _object(path: Path, number: int, line: bytes) -> dict[str, Json]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise bad(path, number, "is not JSON") from error
    if not isinstance(value, dict):
        raise bad(path, number, "is not an object")
    if _deeper(value, _DEPTH):
        raise bad(path, number, f"is nested deeper than {_DEPTH} levels")
    return value


def _deeper(value: dict[str, Json], levels: int) -> bool:
    """Whether there is something in it more than so many levels down."""
    layer: list[Any] = [value]
    for _ in range(levels):
        found = (one.values() if isinstance(one, dict) else one for one in layer)
        layer = [one for part in found for one in part if isinstance(one, dict | list)]
        if not layer:
            return False
    return True


def _draft(path: Path, number: int, value: dict[str, Json]) -> Draft:
    if value.keys() != {"kind", "key", "scope", "at", "body"}:
        raise bad(path, number, "does not have the fields of an entry")
    kind, key, scope, at = (value[name] for name in ("kind", "key", "scope", "at"))
    if kind not in KINDS:
        raise bad(path, number, f"has an entry of kind `{kind}`, which no export holds")
    if not (isinstance(kind, str) and isinstance(key, str) and isinstance(scope, str)):
        raise bad(path, number, "has a name that is no text")
    if isinstance(at, bool) or not isinstance(at, float | int) or not 0 <= at < _LATEST:
        raise bad(path, number, "has a time that is no number of seconds since 1970")
    if not _ours(kind, scope):
        raise bad(path, number, f"has the scope `{scope:.80}`, which no workflow is named")
    try:
        named = _named(kind, key, value["body"])
        facts.storable(kind, key, scope, value["body"])
    except _WRONG as error:
        raise bad(path, number, f"is no {kind}: {error}") from error
    if not named:
        raise bad(path, number, f"has a {kind} under a name that is not its own")
    return Draft(kind=kind, key=key, body=value["body"], scope=scope, at=float(at))


def _ours(kind: str, scope: str) -> bool:
    """Whether a scope is what entries of `kind` have: a call that of a run, others a workflow's."""
    if kind != "call" and _RUN_ID.fullmatch(scope):
        return False  # what stands under a run's name counts as that run's
    return not scope or _NAME.fullmatch(scope) is not None


def _named(kind: str, key: str, body: Any) -> bool:
    """Whether a body is what its kind and its key say. Raises where it has another shape."""
    if kind in ARTIFACTS:
        return artifact_id(from_json(ARTIFACTS[kind], body)) == key
    if kind == "score":
        fair = _fair(from_json(Score, body["score"]))
        return fair and key.startswith(f"{body['episode']}/") and isinstance(body["spec"], str)
    if kind == "run":
        named = all(isinstance(body[name], of) for name, of in _RUN.items())
        return named and bool(_NAME.fullmatch(key))
    if kind == "call":
        from_json(Completion, body)
        return bool(_REPLY.fullmatch(key))
    episode = from_json(Episode, body)
    name = bool(_EPISODE.fullmatch(key) and _NAME.fullmatch(episode.run))
    return name and episode.id == key and proven(episode)


def named(entry: Entry) -> bool:
    """Whether an entry of the log can go into a file: not where a secret was taken from what it is
    named by, nor where its name says nothing of where it came from (a path that was cut out of a
    search, a record of an earlier release)."""
    return _named(entry.kind, entry.key, entry.body)


def proven(episode: Episode) -> bool:
    """Whether an episode's name follows from the order that it is the result of, its run included:
    then it cannot stand in for one of another run. What a grader said stands beside it."""
    ordered = episode.setup is not None and attempt_of(episode).id == order_id(episode.id)
    return ordered and episode.score is None


def _fair(score: Score) -> bool:
    parts = (*score.parts.values(), *score.steps)
    return 0 <= score.value <= 1 and all(map(math.isfinite, parts))


def bad(path: Path, number: int, why: str) -> UsageError:
    """The error that refuses a file by its line `number`."""
    return UsageError(f"`{path}` line {number} {why}; nothing was imported")
