"""The store as everyone else sees it: records in, records out; a typed face of log and index.

Every write is idempotent by name: an episode, a model call, a stage of a cycle or an artifact that
is already there is not written again, which is what lets a killed run go on without paying twice.
Current state (aliases) is read from append-only rows, so a rollback is one more row.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from agentloop.errors import StoreError, UnknownName, UsageError
from agentloop.ports import Embedder
from agentloop.records import (
    Attempt,
    Completion,
    Episode,
    Json,
    Purpose,
    Score,
    Usage,
    Verdict,
    content_id,
)
from agentloop.store.artifacts import KINDS, look_up
from agentloop.store.embed import WordLlamaEmbedder
from agentloop.store.index import Index, IndexBusy
from agentloop.store.log import Log
from agentloop.store.mark import KINDS as INDEXED
from agentloop.store.query import Draft, Entry, Fences, Query
from agentloop.store.versions import Versions
from agentloop.trajectories.codec import from_json, to_json

_UNANSWERED = "unanswered"
_OWN = frozenset((*KINDS, "episode", "score", "alias", "verdict", "step", "call", _UNANSWERED))


class Archive(Versions):
    """The store of one home. Raises `StoreError` for what is wrong with the disk or its files."""

    def __init__(self, home: Path, embedder: Embedder | None = None) -> None:
        super().__init__(Log(home / "log.db"))
        self.index = Index(home / "index", embedder or WordLlamaEmbedder())

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Finish the writes under way and let go of the files; idempotent."""
        self.index.close()  # it may still be reading the log
        self.log.close()

    # Episodes and scores

    async def add_episodes(self, episodes: Sequence[Episode], *, scope: str = "") -> None:
        """Store episodes; when it returns they are on the disk. A known id is passed over."""
        await self.log.append_async(
            [
                Draft(kind="episode", key=episode.id, body=to_json(episode), scope=scope)
                for episode in episodes
            ]
        )

    def episode(self, name: str) -> Episode | None:
        """The episode with this id (or the only one that begins so) and its latest score."""
        entry = look_up(self.log, name, ("episode",))
        return None if entry is None else self._scored(entry)

    def made(self, attempt: Attempt) -> Episode | None:
        """What came of an attempt, with its latest score: an episode with exactly its id, and of
        its run."""
        entry = self.log.get("episode", attempt.id)
        episode = None if entry is None else self._scored(entry)
        return episode if episode is not None and episode.run == attempt.run else None

    def episodes(self, query: Query = Query()) -> list[Episode]:
        """The episodes that `query` chooses, each with its latest score, in log order."""
        return [episode for _, episode in self.each(query)]

    def each(self, query: Query = Query()) -> Iterator[tuple[int, Episode]]:
        """The same one by one, with the seq of each: for more than fit into memory."""
        for entry, score in self.log.scored(replace(query, kinds=("episode",))):
            yield entry.seq, _episode(entry, score)

    def _scored(self, entry: Entry) -> Episode:
        one = Query(kinds=("episode",), since_seq=entry.seq - 1, until=entry.seq)
        return next(iter(self.episodes(one)))

    async def add_scores(
        self, scores: Sequence[tuple[str, Score]], spec: str, *, scope: str = ""
    ) -> None:
        """Append a signal per (episode id, score) under the reward `spec`. Signals may come late
        and change: one that equals the latest of its episode and spec is passed over."""
        drafts = []
        for episode, score in scores:
            prefix = f"{episode}/{content_id('spec', spec)}/"
            body: dict[str, Json] = {"episode": episode, "spec": spec, "score": to_json(score)}
            last = self.log.latest("score", prefix)
            if last is None or last.body != self.log.redact(body):
                # Named after its predecessor, so that two processes cannot both follow it.
                key = prefix + content_id("score", body, last.seq if last else 0)
                drafts.append(Draft(kind="score", key=key, body=body, scope=scope))
        await self.log.append_async(drafts)

    # Cycles, calls, events

    def add_verdict(
        self, verdict: Verdict, cycle: str, *, scope: str = "", fence: Fences | None = None
    ) -> None:
        """Store a gate's decision."""
        body = to_json(verdict)
        key = f"{cycle}#{content_id('verdict', body)}"
        self.log.append([Draft(kind="verdict", key=key, body=body, scope=scope)], fence=fence)

    def verdicts(self, cycle: str | None = None) -> list[Verdict]:
        """The decisions of a cycle (or of all), in log order."""
        query = Query(kinds=("verdict",), prefix=f"{cycle}#" if cycle else "")
        return [from_json(Verdict, entry.body) for entry in self.log.read(query)]

    def step(self, cycle: str, name: str) -> Json:
        """What a finished stage of a cycle gave, `None` when it is not finished."""
        entry = self.log.get("step", f"{cycle}/{name}")
        return None if entry is None else entry.body

    def add_step(
        self, cycle: str, name: str, output: Json, *, scope: str = "", fence: Fences | None = None
    ) -> None:
        """Note that a stage finished and what it gave (not `None`); the first note stays."""
        draft = Draft(kind="step", key=f"{cycle}/{name}", body=output, scope=scope)
        self.log.append([draft], fence=fence)

    def call(self, key: str) -> Completion | None:
        """The reply to a model call that was paid before."""
        entry = self.log.get("call", key)
        return None if entry is None else from_json(Completion, entry.body)

    def calls_of(self, episode: str) -> list[str]:
        """The ends of the keys under which replies to an episode's calls are kept."""
        return [key.rpartition("/")[2] for key in self.log.keys("call", f"{episode}/")]

    async def add_call(self, key: str, completion: Completion, *, scope: str = "") -> None:
        """Journal the reply to a model call; `scope` is the run that paid for it."""
        draft = Draft(kind="call", key=key, body=to_json(completion), scope=scope)
        await self.log.append_async([draft])

    async def add_unanswered(self, usage: Usage, known: bool, *, scope: str = "") -> None:
        """Note an attempt of a run that brought no reply, and what it used: `known` from an answer
        that was refused, else guessed."""
        body: dict[str, Json] = {"usage": to_json(usage), "known": known}
        key = f"{scope}/{secrets.token_hex(8)}"
        await self.log.append_async([Draft(kind=_UNANSWERED, key=key, body=body, scope=scope)])

    def spent(self, scope: str) -> Usage:
        """What the journaled calls of a run used in all, and the answers that were refused."""
        entries = self.log.read(Query(kinds=("call",), scope=scope))
        replies = sum((from_json(Completion, one.body).usage for one in entries), Usage())
        return replies + self._unanswered(scope, True)

    def unconfirmed(self, scope: str) -> Usage:
        """What may be on the bill of a run beside, by an estimate: attempts without an answer."""
        return self._unanswered(scope, False)

    def _unanswered(self, scope: str, known: bool) -> Usage:
        bodies: Iterator[Any] = (
            one.body for one in self.log.read(Query(kinds=(_UNANSWERED,), scope=scope))
        )
        usages = (from_json(Usage, one["usage"]) for one in bodies if one["known"] is known)
        return sum(usages, Usage())

    def add_event(self, kind: str, key: str, scope: str, body: Json) -> None:
        """Note anything else, under a kind of the caller's own."""
        if kind in _OWN:
            raise UsageError(f"events of kind `{kind}` have a method of their own; choose another")
        self.log.append([Draft(kind=kind, key=key, body=body, scope=scope)])

    def read(self, query: Query = Query()) -> Iterator[Entry]:
        """Entries of any kind, in log order."""
        return self.log.read(query)

    # Search and upkeep

    def search(
        self, kind: str, text: str, k: int = 5, *, success: bool | None = None,
        purpose: Purpose | None = None, scope: str | None = None,
    ) -> list[tuple[str, float]]:  # fmt: skip
        """(id, cosine distance in [0, 2]) of the `k` nearest episodes, skills or instructions,
        nearest first, of all that was appended before. Raises `UsageError` for an empty text."""
        if kind not in INDEXED:
            raise UnknownName("kind to search", kind, INDEXED)
        if not text.strip():
            raise UsageError(
                "the text to search for is empty; say what to look for: agentloop search TEXT"
            )
        where = Query()
        if (success, purpose, scope) != (None, None, None):
            where = Query(kinds=(kind,), success=success, purpose=purpose, scope=scope)
        for mend in (self.index.drain, self.index.rebuild):
            try:
                return self.index.near(self.log, kind, text, k, where)
            except IndexBusy:
                raise
            except StoreError:  # damaged, or another process put a new one in its place just now
                mend(self.log)
        return self.index.near(self.log, kind, text, k, where)

    def verify(self) -> dict[str, Json]:
        """`{"ok", "rows", "problems"}` of the log, and of the index where it should be ahead."""
        rows, problems = self.log.verify()
        if not problems:
            problems = self.index.problems(self.log)
        return {"ok": not problems, "rows": rows, "problems": list[Json](problems)}

    def reindex(self) -> int:
        """Build the index again from the log; the number of entries read."""
        return self.index.rebuild(self.log)


def _episode(entry: Entry, score: Entry | None) -> Episode:
    episode = from_json(Episode, entry.body)
    return episode if score is None else replace(episode, score=_score(score))


def _score(entry: Entry) -> Score:
    body: Any = entry.body
    return from_json(Score, body["score"])
