"""A LangGraph checkpointer that stores each message once: durable steps at the cost of an append.

Goes in: what LangGraph puts (whole states, tasks' writes). Comes out: the same, by thread. A thread
is one append-only file (`checkpoint_file`), so savers in other processes see it and deleting it is
removing a file. Decisions: a list is stored by element, which is what makes a growing conversation
cheap; with `durability="sync"` a step is on its way only when the one before it is in the file, so
after `kill -9` at most the step in flight runs again. LangGraph's `DeltaChannel` would ask every
agent to change its state, and a database writes 4 kB pages for 0.5 kB messages
(`python -m benchmarks.steps` measures both).
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_checkpoint_metadata,
    writes_sort_key,
)

from agentloop.graphs.checkpoint_file import Snapshot, ThreadFile, Write, thread_of
from agentloop.graphs.checkpoint_integers import IntegerSerializer
from agentloop.graphs.checkpoint_values import pack, pack_channel, unpack
from agentloop.records import Json
from agentloop.trajectories.redact import Redactor

THREADS = 1024
"""How many threads' states are kept in memory (about what their files hold); others are read."""
FILES = 64
"""How many threads' files stay open; others are opened for each step."""


class _Unsuspended(BaseCheckpointSaver[int]):
    """The async methods, each by the one without `a`: an append takes microseconds."""

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """As `put`."""
        return self.put(config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """As `put_writes`."""
        self.put_writes(config, writes, task_id, task_path)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """As `get_tuple`."""
        return self.get_tuple(config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """As `list`."""
        for found in self.list(config, filter=filter, before=before, limit=limit):
            yield found

    async def adelete_thread(self, thread_id: str) -> None:
        """As `delete_thread`."""
        self.delete_thread(thread_id)


class DeltaSaver(_Unsuspended):
    """Checkpoints under the folder `path`. Every method may be called from any thread. Raises
    `StoreError` when a file cannot be written or read. As LangGraph asks, a state changes by what
    nodes return: a message object (not a dictionary) that was changed in place is not seen."""

    def __init__(self, path: Path, *, redact: Redactor | None = None) -> None:
        """`redact` sees every string before it is written."""
        # Nothing but plain and LangChain types is constructed on loading.
        super().__init__(serde=IntegerSerializer())
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = path
        self._redact = redact
        self._lock = threading.RLock()
        self._open: OrderedDict[str, ThreadFile] = OrderedDict()
        self._held: OrderedDict[str, ThreadFile] = OrderedDict()

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint; in the file when this returns."""
        thread, ns, parent = _address(config)
        content = cast(dict[str, Any], dict(checkpoint))
        values, versions = content.pop("channel_values"), content.pop("channel_versions")
        seen, name = content.pop("versions_seen"), content.pop("id")
        with self._lock, self._file(thread).writing() as file:
            old = file.snapshots.get((ns, parent or ""))
            packed = {}
            for channel, value in values.items():
                version = versions.get(channel)
                same = version is not None and channel not in new_versions
                if same and old and old.versions.get(channel) == version and channel in old.values:
                    packed[channel] = old.values[channel]
                else:
                    packed[channel] = pack_channel(file, (ns, channel), value, self.serde)
            about = cast(dict[str, Any], get_checkpoint_metadata(config, metadata))
            snapshot = Snapshot(parent, content, versions, seen, about, packed)
            file.add_snapshot(ns, name, snapshot)
        return _config(thread, ns, name)

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store what a finished task wrote; in the file when this returns. Writes that are known
        are left as they are; errors, interrupts and the like replace the earlier one."""
        thread, ns, name = _address(config)
        with self._lock, self._file(thread).writing() as file:
            known = file.writes.get((ns, str(name)), {})
            new = {
                at: Write(task_path, channel, pack(file, value, self.serde))
                for at, (channel, value) in (
                    (WRITES_IDX_MAP.get(write[0], at), write) for at, write in enumerate(writes)
                )
                if at < 0 or (task_id, at) not in known
            }
            if new:
                file.add_writes(ns, str(name), task_id, new)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that `config` names, else the thread's latest; `None` without one."""
        thread, ns, name = _address(config)
        with self._lock:
            file = self._file(thread).refresh()
            if name is None:
                name = max((name for space, name in file.snapshots if space == ns), default=None)
            if name is None or (ns, name) not in file.snapshots:
                return None
            return self._tuple(file, ns, name)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Checkpoints, newest first: of `config`'s thread (and namespace, and id) or of all."""
        wanted = (config or {}).get("configurable", {})
        threads = [str(wanted["thread_id"])] if config else self._threads()
        last = get_checkpoint_id(before) if before else None
        with self._lock:
            files = [self._file(thread).refresh() for thread in threads]
            found = [
                self._tuple(file, ns, name)
                for name, ns, file in sorted(
                    ((name, ns, file) for file in files for ns, name in file.snapshots),
                    key=lambda one: one[0],
                    reverse=True,
                )
                if wanted.get("checkpoint_ns", ns) == ns
                and (wanted.get("checkpoint_id") or name) == name
                and (last is None or name < last)
                and _matches(file.snapshots[ns, name].metadata, filter or {})
            ]
        yield from found[:limit]

    def delete_thread(self, thread_id: str) -> None:
        """Remove all of a thread; nothing happens when there is none."""
        with self._lock:
            self._file(str(thread_id)).remove()

    def note(self, thread: str, note: Json) -> None:
        """Keep something of a run's own beside its steps; in the file when this returns."""
        with self._lock, self._file(thread).writing() as file:
            file.add_note(note)

    def notes(self, thread: str, *, all: bool = False) -> Sequence[Any]:
        """The notes made before the last step was stored. Later ones belong to a step that runs
        again and are dropped; with `all` they are given, too."""
        if all:
            with self._lock:
                return tuple(self._file(thread).refresh().notes)
        with self._lock, self._file(thread).writing() as file:
            file.cut_notes()
            return tuple(file.notes)

    def would_redact(self, note: Json) -> bool:
        """Whether something would be taken out of it."""
        return self._redact is not None and self._redact(note) is not note

    def _file(self, thread: str) -> ThreadFile:
        file = self._open.pop(thread, None)
        if file is None:
            name = hashlib.blake2b(thread.encode(), digest_size=16).hexdigest()
            file = ThreadFile(self._folder / f"{name}.ckpt", thread, self._redact)
        self._open[thread] = file
        if len(self._open) > THREADS:
            self._open.popitem(last=False)
        self._held[thread] = file
        self._held.move_to_end(thread)
        if len(self._held) > FILES:
            self._held.popitem(last=False)[1].close()
        return file

    def _threads(self) -> Sequence[str]:
        found = (thread_of(path) for path in sorted(self._folder.glob("*.ckpt")))
        return [thread for thread in found if thread is not None]

    def _tuple(self, file: ThreadFile, ns: str, name: str) -> CheckpointTuple:
        one = file.snapshots[ns, name]
        writes = sorted(
            file.writes.get((ns, name), {}).items(),
            key=lambda item: writes_sort_key(item[1].path, *item[0]),
        )
        pending = [
            (key[0], write.channel, unpack(file, write.value, self.serde)) for key, write in writes
        ]
        content = {
            **one.head, "id": name, "channel_versions": dict(one.versions),
            "versions_seen": {node: dict(seen) for node, seen in one.seen.items()},
            "channel_values": {key: unpack(file, at, self.serde) for key, at in one.values.items()},
        }  # fmt: skip
        return CheckpointTuple(
            _config(file.thread, ns, name),
            cast(Checkpoint, content),
            cast(CheckpointMetadata, dict(one.metadata)),
            _config(file.thread, ns, one.parent) if one.parent else None,
            pending,
        )


def _address(config: RunnableConfig) -> tuple[str, str, str | None]:
    """(thread, namespace, checkpoint id)."""
    given = config["configurable"]
    return str(given["thread_id"]), given.get("checkpoint_ns", ""), given.get("checkpoint_id")


def _config(thread: str, ns: str, name: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": name}}


def _matches(metadata: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(key in metadata and metadata[key] == value for key, value in wanted.items())
