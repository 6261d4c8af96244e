"""Trajectories from one home to another, as lines of JSON: export and import.

Goes in: a log. Comes out: a file with one entry a line (`.jsonl`, or `.zst`/`.gz` of it), each with
a hash that covers the line before it; or, the other way, its entries in another log. Decision: what
is taken along is what was recorded and what it was made with, never what steers a home (aliases,
cycles, leases) nor weights: a file from anybody cannot change what is served. A file is read to its
end before anything is written.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from agentloop.errors import StoreError, UsageError
from agentloop.records import Completion, Episode, Json, Score, artifact_id, attempt_of
from agentloop.store.artifacts import KINDS as ARTIFACTS
from agentloop.store.log import Log
from agentloop.store.query import Draft, Entry, Query
from agentloop.trajectories.codec import from_json

FORMAT = 1
_HEADER: dict[str, Json] = {"agentloop": "export", "format": FORMAT}
_LINE = 64 * 2**20
"""Characters in a line; a longer one is nobody's trajectory."""
_BATCH = 1000
_RUN = {"purpose": str, "seed": int, "plan": str, "bundle": str}
KINDS = ("episode", "score", "call", "run", *ARTIFACTS)
FOREIGN = "foreign"
"""Kind of the entry that says that a run was imported."""
ENDINGS = (".jsonl", ".jsonl.zst", ".jsonl.gz")


@dataclass(frozen=True)
class Imported:
    """Counts: written; already there; left out, because another stands under the name or it would
    add to a run of this home's own."""

    new: int = 0
    known: int = 0
    left: int = 0


def export(log: Log, path: Path, *, workflow: str | None = None, run: str | None = None) -> int:
    """Write the entries of the log, or those of one workflow or run, to a new file; how many. It
    appears whole or not at all. Raises `UsageError` when it exists or its name has another ending,
    `StoreError` when it cannot be written."""
    _ending(path)
    if path.exists():
        raise UsageError(f"`{path}` exists; give another name")
    draft = path.with_name(f".{path.name}.part")
    try:
        with open(os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600), "wb") as file:
            with _packed(file, path) as out:
                count = _write(out, _chosen(log, workflow, run))
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # unlike a rename, never over a file that came meanwhile
    except OSError as error:
        raise StoreError(f"`{path}` cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return count


def load(log: Log, path: Path) -> Imported:
    """Append what the file has and the log has not. The first write of a name stays, so a second
    import changes nothing, and nothing is added to a run of this home's own. Raises `UsageError`
    that names the line of what is damaged or does not belong; then nothing was written. A disk that
    fills up on the way leaves what came before it: import the file again."""
    held = check(path)
    own = {run for run in held.runs.values() if _own(log, run)}
    done, read = Imported(), 0
    drafts = entries(path)
    while batch := list(islice(drafts, _BATCH)):
        read += len(batch)
        here = [log.get(one.kind, one.key) for one in batch]
        same = sum(
            entry is not None and entry.body == log.redact(one.body)
            for entry, one in zip(here, batch, strict=True)
        )
        new = [
            one
            for entry, one in zip(here, batch, strict=True)
            if entry is None and not _theirs(log, held, one) & own
        ]
        log.append([*_marks(new), *new])
        left = len(batch) - len(new) - same
        done = Imported(done.new + len(new), done.known + same, done.left + left)
    if read != held.rows:
        raise UsageError(f"`{path}` was changed while it was read; import it again")
    return done


@dataclass
class Held:
    """What is in a file: its entries, and the run of each rollout, by the rollout's id and by that
    of the order that it is the result of."""

    rows: int = 0
    runs: dict[str, str] = field(default_factory=dict)


def check(path: Path) -> Held:
    """Look at every entry of an exported file. A reply or a score must belong to a rollout of the
    file, a reply to one whose name follows from what it was given: under another name it would be
    told to some rollout to come. Raises `UsageError`."""
    held = Held()
    told: dict[str, int] = {}
    scored: dict[str, int] = {}
    ordered: set[str] = set()
    for number, draft in enumerate(entries(path), 2):
        held.rows += 1
        if draft.kind == "call":
            told.setdefault(draft.key.rpartition("/")[0], number)
        elif draft.kind == "score":
            scored.setdefault(_scored(draft), number)
        elif draft.kind == "episode":
            episode = from_json(Episode, draft.body)
            held.runs[episode.id] = episode.run
            if episode.setup is not None:
                order = attempt_of(episode).id
                held.runs[order] = episode.run
                ordered.add(order)
    lost = [line for name, line in told.items() if name not in ordered]
    lost += [line for name, line in scored.items() if name not in held.runs]
    if lost:
        raise _bad(path, min(lost), "belongs to no rollout of the file")
    return held


def foreign(log: Log, run: str) -> bool:
    """Whether the rollouts of this run (or cycle) were imported: its name is taken."""
    return log.get(FOREIGN, run) is not None


def _own(log: Log, run: str) -> bool:
    if foreign(log, run):
        return False
    begun = any(log.get(kind, run) is not None for kind in ("run", "cycle"))
    return begun or bool(log.chosen(Query(kinds=("episode",), run=run)))


def _theirs(log: Log, held: Held, draft: Draft) -> set[str]:
    """The runs that an entry would add to; a version adds to none."""
    if draft.kind == "score":
        episode = log.get("episode", _scored(draft))
        return {held.runs[_scored(draft)], *([_run(episode.body)] if episode else ())}
    if draft.kind == "call":
        return {held.runs[draft.key.rpartition("/")[0]]}
    return {_run(draft.body)} if draft.kind == "episode" else {draft.key}


def _marks(new: list[Draft]) -> list[Draft]:
    """Notes that the runs of these entries are not this home's: nobody here goes on with them."""
    begun = [one.key for one in new if one.kind == "run"]
    runs = {_run(one.body) for one in new if one.kind == "episode"}.union(begun)
    return [
        *(Draft(kind=FOREIGN, key=run, body=True) for run in sorted(runs)),
        *(Draft(kind="step", key=f"{run}/done", body=True) for run in begun),
    ]


def _run(body: Json) -> str:
    return str(cast(dict[str, Any], body)["run"])


def _scored(draft: Draft) -> str:
    return str(cast(dict[str, Any], draft.body)["episode"])


def entries(path: Path) -> Iterator[Draft]:
    """The entries of an exported file, each checked. Raises `UsageError`."""
    _ending(path)
    before, count, ended = "", 0, False
    for number, line in enumerate(_lines(path), 1):
        value = _object(path, number, line)
        if ended:
            raise _bad(path, number, "stands after the end")
        digest = value.pop("sha256", None)
        if digest != _digest(before, value):
            raise _bad(path, number, "does not match its hash")
        before = str(digest)
        if number == 1:
            if value != _HEADER:
                raise _bad(path, number, f"is not the head of an export of format {FORMAT}")
        elif "rows" in value:
            if value != {"rows": count}:
                raise _bad(path, number, f"says {value['rows']} entries, and {count} are there")
            ended = True
        else:
            count += 1
            yield _draft(path, number, value)
    if not ended:
        raise UsageError(f"`{path}` has no end: it was cut off; export it again")


def _write(out: IO[bytes], chosen: Iterator[Entry]) -> int:
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


def _chosen(log: Log, workflow: str | None, run: str | None) -> Iterator[Entry]:
    """In log order: rollouts with their scores, replies, runs and versions. Left out are replies
    that no rollout ended with, and versions from which a secret was taken after they were named."""
    episodes = log.chosen(Query(kinds=("episode",), scope=workflow, run=run))
    if not episodes and (workflow or run):
        raise UsageError(f"there are no rollouts of `{run or workflow}` in this home")
    runs, bundles, orders = set(), set(), set()
    for entry in log.read(Query(kinds=("episode",), scope=workflow, run=run)):
        episode = from_json(Episode, entry.body)
        runs.add(episode.run)
        bundles.add(episode.bundle)
        if episode.setup is not None:
            orders.add(attempt_of(episode).id)
    parts = None if workflow is None and run is None else _parts(log, bundles)
    for entry in log.read(Query(kinds=KINDS)):
        if (
            (entry.kind == "episode" and entry.key in episodes)
            or (entry.kind == "score" and entry.key.partition("/")[0] in episodes)
            or (entry.kind == "call" and entry.key.rpartition("/")[0] in orders)
            or (entry.kind == "run" and entry.key in runs)
            or (entry.kind in ARTIFACTS and (parts is None or entry.key in parts))
        ) and _named(entry.kind, entry.key, entry.body):
            yield entry


def _parts(log: Log, bundles: set[str]) -> set[str]:
    """The bundles and what they are made of."""
    found = set(bundles)
    for name in bundles:
        entry = log.get("bundle", name)
        if entry is not None:
            body = cast(dict[str, Any], entry.body)
            found |= {body["instruction"], *body.get("skills", ())}
            found |= set(body.get("policies", {}).values())
    return found


def _ending(path: Path) -> None:
    if not path.name.endswith(ENDINGS):
        raise UsageError(f"`{path.name}` does not end in {', '.join(ENDINGS)}; name it so")


def _packed(file: IO[bytes], path: Path) -> IO[bytes]:
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
                    raise _bad(path, number, f"is longer than {_LINE} bytes")
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
        raise _bad(path, number, "is not JSON") from error
    if not isinstance(value, dict):
        raise _bad(path, number, "is not an object")
    return value


def _draft(path: Path, number: int, value: dict[str, Json]) -> Draft:
    if value.keys() != {"kind", "key", "scope", "at", "body"}:
        raise _bad(path, number, "does not have the fields of an entry")
    kind, key, scope, at = (value[name] for name in ("kind", "key", "scope", "at"))
    if kind not in KINDS:
        raise _bad(path, number, f"has an entry of kind `{kind}`, which no export holds")
    if not (isinstance(kind, str) and isinstance(key, str) and isinstance(scope, str)):
        raise _bad(path, number, "has a name that is no text")
    if not isinstance(at, float | int) or not math.isfinite(at):
        raise _bad(path, number, "has a time that is no number")
    try:
        named = _named(kind, key, value["body"])
    except (StoreError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bad(path, number, f"is no {kind}: {error}") from error
    if not named:
        raise _bad(path, number, f"has a {kind} under a name that is not its own")
    return Draft(kind=kind, key=key, body=value["body"], scope=scope, at=float(at))


def _named(kind: str, key: str, body: Any) -> bool:
    """Whether a body is what its kind and its key say. Raises where it has another shape."""
    if kind in ARTIFACTS:
        return artifact_id(from_json(ARTIFACTS[kind], body)) == key
    if kind == "score":
        from_json(Score, body["score"])
        return key.startswith(f"{body['episode']}/") and isinstance(body["spec"], str)
    if kind == "run":
        return all(isinstance(body[name], of) for name, of in _RUN.items())
    if kind == "call":
        from_json(Completion, body)
        return True
    return from_json(Episode, body).id == key


def _bad(path: Path, number: int, why: str) -> UsageError:
    return UsageError(f"`{path}` line {number} {why}; nothing was imported")
